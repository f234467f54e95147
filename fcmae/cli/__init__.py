"""The console command `fcmae`: one module per subcommand, errors as one sentence."""

from __future__ import annotations

import difflib
import os
import sys
from importlib import import_module

from fcmae.machine.allocator import keep_freed_memory

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

DONE = 0
FAILED = 1  # a check or a training failed
MISTAKE = 2  # of the user's: nothing was started
INTERRUPTED_AT_ONCE = 128 + 2  # by Ctrl-C, before or after the training
INTERRUPTED = 75  # by a signal, with a checkpoint written: start the same command again


def main(arguments: list[str] | None = None) -> int:
    """Run `fcmae COMMAND ...` and return its exit status; see the constants above."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return DONE if arguments else MISTAKE
    if arguments[0] == "--version":
        from fcmae import __version__

        print(f"fcmae {__version__}")
        return DONE
    if arguments[0] not in COMMANDS:
        near = difflib.get_close_matches(arguments[0], COMMANDS, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"Expected one of {', '.join(COMMANDS)}."
        return _complain(f"unknown command {arguments[0]!r}. {hint}")
    return run_command(arguments[0], arguments[1:])


def console() -> None:
    """Be the console command: `main` with the process's arguments and exit status."""
    sys.exit(main())


def run_command(name: str, arguments: list[str]) -> int:
    """Run one subcommand, turning the project's errors into one sentence on stderr."""
    # OpenMP's threads spin while they wait, and one busy process beside them, such as a reader of
    # images, then makes training on a CPU ten times slower. Read when torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_freed_memory()
    from fcmae.errors import EXPECTED_ERRORS, DiskError, NonFiniteLossError, is_out_of_memory

    try:
        status = import_module(COMMANDS[name]).run(arguments)
    except KeyboardInterrupt:
        return _complain("interrupted.", INTERRUPTED_AT_ONCE)
    except (DiskError, NonFiniteLossError) as error:
        return _complain(str(error), FAILED)
    except EXPECTED_ERRORS as error:
        return _complain(str(error))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "no details"
        return _complain(
            f"there is not enough memory ({reason}). Lower train.batch_size (train.accumulate "
            "keeps the effective batch), set model.checkpoint_activations, or take a smaller "
            "model; fcmae plan tells what fits.",
            FAILED,
        )
    return DONE if status is None else status


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {_summary(name)}" for name in COMMANDS]
    return "\n".join(
        [
            "usage: fcmae COMMAND [--config FILE] [--section.setting VALUE ...]",
            "",
            "Self-supervised pretraining of ConvNets on your own images (FCMAE, ConvNeXt V2).",
            "",
            *lines,
            "",
            "fcmae COMMAND --help lists the settings of a command.",
        ]
    )


def _summary(name: str) -> str:
    return str(import_module(COMMANDS[name]).SUMMARY)


def _complain(message: str, status: int = MISTAKE) -> int:
    print(f"fcmae: error: {message}", file=sys.stderr)
    return status
