"""The subcommands of the console, one thin file each: read arguments, call, print."""

# Imported only when asked for: torch takes seconds to load.
COMMANDS = {
    "pretrain": "fcmae.cli.pretrain",
    "plan": "fcmae.cli.plan",
    "finetune": "fcmae.cli.finetune",
    "submit": "fcmae.cli.submit",
    "export": "fcmae.cli.export",
    "reconstruct": "fcmae.cli.reconstruct",
    "embed": "fcmae.cli.embed",
    "probe": "fcmae.cli.probe",
    "compare": "fcmae.cli.compare",
    "ablate": "fcmae.cli.ablate",
    "report": "fcmae.cli.report",
    "convert": "fcmae.cli.convert",
    "verify": "fcmae.cli.verify",
    "bench": "fcmae.cli.bench",
    "install-minkowski": "fcmae.cli.install_minkowski",
}
