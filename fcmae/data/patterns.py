"""Many paths written as one: {000..099}, {a,b}, * and ?."""

import glob
import os
import re

from fcmae.errors import ConfigError

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
MOST = 1_000_000  # paths of one pattern; more is a slip


def expand(path: str, where: str) -> list[str]:
    """Return the paths that a pattern stands for, [path] for one that exists or is none.

    {000..099} counts, with as many digits as its first number; {a,b} lists; *, ? and [] match
    names that exist, sorted by bytes.

    Raises:
        ConfigError: a pattern that stands for nothing, or for too much.
    """
    path = os.path.expanduser(path)
    if os.path.lexists(path):
        return [path]
    waiting, done = [path], []
    while waiting:
        text = waiting.pop(0)
        braces = next((found for found in _BRACES.finditer(text) if _choices(found[1])), None)
        if braces is None:
            done.append(text)
            continue
        choices = _choices(braces[1])
        if len(choices) + len(waiting) + len(done) > MOST:
            raise ConfigError(f"{where}: {path!r} stands for more than {MOST:,} paths.")
        waiting[:0] = [text[: braces.start()] + choice + text[braces.end() :] for choice in choices]
    found: list[str] = []
    for text in done:
        if os.path.lexists(text) or not glob.has_magic(text):
            found.append(text)
            continue
        matches = sorted(glob.glob(text), key=os.fsencode)
        if not matches:
            raise ConfigError(
                f"{where}: {text!r} matches nothing (looked for it from {os.getcwd()})."
            )
        found += matches
    return found


def _choices(inside: str) -> list[str]:
    """Return what a pair of braces stands for; [] when it is no pattern."""
    counted = _RANGE.fullmatch(inside)
    if counted:
        first, last = int(counted[1]), int(counted[2])
        step = 1 if first <= last else -1
        if abs(last - first) >= MOST:
            return [inside] * (MOST + 1)
        width = len(counted[1]) if counted[1].startswith("0") else 0
        return [f"{number:0{width}d}" for number in range(first, last + step, step)]
    return inside.split(",") if "," in inside else []
