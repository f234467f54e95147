"""Programs that the installer runs in a Python of their own, and what can go wrong with them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


class InstallError(RuntimeError):
    """Fetching, building, installing or testing failed; the message names the log if one exists."""


class MissingToolsError(InstallError):
    """The machine lacks tools; the message lists each with the packages that bring it."""


def run_module(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m fcmae.minkowski_install.NAME ARGUMENTS`; it sees what was just installed."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-m", f"{__package__}.{name}", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": path},
    )


def last_line(text: str, otherwise: str) -> str:
    """Return the last line that is not empty: what a failed program says at the end."""
    lines = text.strip().splitlines()
    return lines[-1] if lines else otherwise
