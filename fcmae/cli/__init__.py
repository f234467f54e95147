"""The subcommands of the console, thin files: read arguments, call, print."""

# {command: MODULE, whose `run` is called, or MODULE:FUNCTION}, imported only when asked for.
COMMANDS = {
    "inspect": "fcmae.cli.inspect",
    "pretrain": "fcmae.cli.pretrain",
    "plan": "fcmae.cli.pretrain:plan",
    "finetune": "fcmae.cli.finetune",
    "submit": "fcmae.cli.submit",
    "export": "fcmae.cli.convert:export",
    "reconstruct": "fcmae.cli.reconstruct",
    "predict": "fcmae.cli.predict",
    "embed": "fcmae.cli.embed",
    "probe": "fcmae.cli.probe",
    "curate": "fcmae.cli.curate",
    "compare": "fcmae.cli.compare",
    "ablate": "fcmae.cli.ablate",
    "report": "fcmae.cli.ablate:report",
    "convert": "fcmae.cli.convert",
    "verify": "fcmae.cli.verify",
    "bench": "fcmae.cli.bench",
    "install-minkowski": "fcmae.cli.install_minkowski",
}
