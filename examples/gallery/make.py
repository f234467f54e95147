"""Makes the gallery: runs of the toolkit on images that packages bring, and the page about them.

    python examples/gallery/make.py --work gallery

fetches images, runs `fcmae pretrain`, `fcmae embed` and `fcmae report` of each entry one after
another in the folder --work, writes pictures and a record of each into docs/gallery, and
docs/gallery.md from all records. An entry that has its record in --work is not run again. Needs
Debian (two packages are fetched by `apt-get download`) and the extra `quickstart`.

    python examples/gallery/make.py --only digits --set train.steps=20

runs one entry, with settings of your own in place of the gallery's.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import entries
import page

from fcmae.machine.hardware import processor, versions

DOCS = Path(__file__).resolve().parents[2] / "docs"
THREADS = "1"


def commands_of(entry: entries.Entry, settings: Mapping[str, str]) -> list[list[str]]:
    """Return the words of the commands of an entry, which run in the folder --work."""
    words = {**entry.words, **settings}
    run, images = words["run.dir"], words["data.path"]
    embed = ["embed", run, images, "--output", f"{run}/features.npz", "--workers", "0"]
    if label := words.get("data.label"):
        embed += ["--label", label]
    pretrain = ["pretrain", *(word for name in words for word in (f"--{name}", words[name]))]
    return [["fcmae", *command] for command in (pretrain, embed, ["report", run])]


def run(entry: entries.Entry, work: Path, settings: Mapping[str, str], note: str) -> dict[str, Any]:
    """Run the commands of an entry and return what the page says of them.

    Raises:
        CalledProcessError: a command failed or was stopped; what it said has been printed.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": THREADS}
    commands = commands_of(entry, settings)
    seconds = []
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    for command in commands:
        print(f"$ {shlex.join(command)}", flush=True)
        begin = time.monotonic()
        subprocess.run([sys.executable, "-m", *command], cwd=work, env=environment, check=True)
        seconds.append(round(time.monotonic() - begin, 1))
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "commands": [shlex.join(command) for command in commands],
        "seconds": seconds,
        "processor_seconds": round(
            spent.ru_utime + spent.ru_stime - used.ru_utime - used.ru_stime, 1
        ),
        "machine": f"{processor()}, one thread{note and f', {note}'}; {versions()}",
        "date": datetime.date.today().isoformat(),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what a command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=[entry.name for entry in entries.ENTRIES])
    parser.add_argument("--work", type=Path, default=Path("gallery"), help="Images and runs.")
    parser.add_argument("--packages", type=Path, help="Unpacked Debian packages, by name.")
    parser.add_argument("--docs", type=Path, default=DOCS, help="Where page and pictures go.")
    parser.add_argument("--note", default="", help="Of the machine: beside other work, say.")
    parser.add_argument("--set", nargs="+", default=[], metavar="SETTING=VALUE")
    given = parser.parse_args(arguments)
    packages = given.packages or given.work / "packages"
    if wrong := [word for word in given.set if "=" not in word]:
        parser.error(f"--set: got {wrong[0]!r}, expected SETTING=VALUE, such as train.steps=20.")
    settings = dict(word.split("=", 1) for word in given.set)
    try:
        make(given, packages, settings)
    except subprocess.CalledProcessError as error:
        command = shlex.join(map(str, error.cmd))
        raise SystemExit(
            f"{command!r} ended with status {error.returncode}, for the reason above; the same "
            "command goes on from there."
        ) from error


def make(given: argparse.Namespace, packages: Path, settings: Mapping[str, str]) -> None:
    """Run the entries that are asked for and not done, and write the page."""
    for entry in entries.ENTRIES:
        if given.only and entry.name not in given.only:
            continue
        record = given.work / "runs" / entry.name / "gallery.json"
        if not record.is_file():
            entries.write_images(entry, given.work, packages)
            done = run(entry, given.work, settings, given.note)
            record.write_text(json.dumps(done), encoding="utf-8")
        done = json.loads(record.read_text(encoding="utf-8"))
        page.write_entry(entry, given.work, packages, done, given.docs / "gallery" / entry.name)
    page.write_page(entries.ENTRIES, given.docs)


if __name__ == "__main__":
    main()
