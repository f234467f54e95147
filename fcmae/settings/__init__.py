"""What a YAML file or a command line can say: sections of settings, and how they are read."""
