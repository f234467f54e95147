"""What can go wrong while MinkowskiEngine is installed."""


class InstallError(RuntimeError):
    """Fetching, building, installing or testing failed; the message names the log if one exists."""


class MissingToolsError(InstallError):
    """The machine lacks tools; the message lists each with the packages that bring it."""
