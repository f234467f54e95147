"""The console command `fcmae`, also `python -m fcmae`: one of the subcommands of fcmae.cli."""

import difflib
import os
import sys
from collections.abc import Callable
from importlib import import_module

from fcmae.cli import COMMANDS
from fcmae.errors import DONE, MISTAKE, complain, status_of
from fcmae.machine.allocator import keep_freed_memory
from fcmae.machine.console import allow_open_files, show_all_letters


def main(arguments: list[str] | None = None) -> int:
    """Run `fcmae COMMAND ...` and return its exit status; see fcmae.errors."""
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
        return complain(f"unknown command {arguments[0]!r}. {hint}")
    return run_command(arguments[0], arguments[1:])


def console() -> None:
    """Be the console command: `main` with the process's arguments and exit status."""
    sys.exit(main())


def run_command(name: str, arguments: list[str]) -> int:
    """Run one subcommand; return its exit status."""
    # OpenMP's threads spin while they wait, and one busy process beside them, such as a reader of
    # images, then makes training on a CPU ten times slower. Read when torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # scikit-learn's pool of processes, which nothing here uses, warns where /dev/shm is full.
    os.environ.setdefault("JOBLIB_MULTIPROCESSING", "0")
    keep_freed_memory()
    allow_open_files()
    show_all_letters()
    return status_of(lambda: _command(name)[0](arguments))


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {_command(name)[1]}" for name in COMMANDS]
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


def _command(name: str) -> tuple[Callable[[list[str]], int | None], str]:
    """Return what a subcommand runs, and what it is for."""
    module, _, function = COMMANDS[name].partition(":")
    loaded = import_module(module)
    summary = f"{function.upper()}_SUMMARY" if function else "SUMMARY"
    return getattr(loaded, function or "run"), getattr(loaded, summary)


if __name__ == "__main__":
    sys.exit(main())
