"""The gallery's pictures and its page, made from what runs left in their folders."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import neighbours
from entries import Entry
from PIL import Image

import fcmae
from fcmae.data.recorded import read_paths
from fcmae.settings.pretrain import PretrainConfig

# As wide as a picture becomes, and of how many colours: a third of the bytes.
WIDEST_PX = {"loss": 840, "health": 1100, "reconstructions": 500, "neighbours": 700}
COLOURS = {"loss": 192, "health": 192, "reconstructions": 128, "neighbours": 96}
FIGURES = ("loss", "health")  # of few colours, all of which are to be kept
ROUNDS = 2  # of k-means, which make a palette of photographs a good one
COMMAND_WIDTH = 84
BASE_IMAGES = 256  # which optim.base_lr is for
RIVALS = ("untrained", "raw pixels")
INTRODUCTION = """# Gallery of real runs

What a few minutes of one processor core give on images of six kinds, and where they give nothing.
`examples/gallery/make.py` fetched or made the images, ran the commands that stand here, drew the
pictures and wrote this page; which sentence helped and which did not is decided by intervals, not
by hand. Every run is `convnextv2_atto` from random weights, one seed, with whatever the
{doc}`rules <recipes>` chose for it. These are short runs: {doc}`the start page <start>` has a
longer one.

How to read a part:

- **Probes** ask classifiers of frozen features for classes that pretraining never saw, beside an
  untrained encoder and raw pixels. *What helped* and *what did not* are the sentences that the run
  prints: a difference counts when its interval over draws of labels leaves out 0
  ({doc}`more <health>`). Another seed of the pretraining may say otherwise.
- **Nearest pictures**: five queries drawn by a seed, of one class after another, and of each the
  five pictures whose features are most alike (cosine). Blue frames have the query's class, orange
  ones another; of pictures that are cut from one slab none is shown beside the query.
- **Reconstructions** are of pictures that the run never trained on.

"""


def save(picture: Image.Image, name: str, folder: Path) -> None:
    """Write a picture of the page, smaller than runs draw it."""
    flat = Image.new("RGB", picture.size, "white")
    flat.paste(picture, mask=picture.convert("RGBA").getchannel("A"))
    if flat.width > WIDEST_PX[name]:
        height = round(flat.height * WIDEST_PX[name] / flat.width)
        flat = flat.resize((WIDEST_PX[name], height), Image.Resampling.LANCZOS)
    if name in FIGURES:
        method, rounds = Image.Quantize.MAXCOVERAGE, 0
    else:
        method, rounds = Image.Quantize.MEDIANCUT, ROUNDS
    reduced = flat.quantize(COLOURS[name], method, kmeans=rounds, dither=Image.Dither.NONE)
    reduced.save(folder / f"{name}.png", optimize=True)


def write_entry(
    entry: Entry, work: Path, packages: Path, done: Mapping[str, Any], folder: Path
) -> None:
    """Write pictures and record.json of a run.

    Args:
        entry: what ran.
        work: the folder that its commands ran in.
        packages: unpacked Debian packages, by name.
        done: its commands, seconds, machine and date.
        folder: where they go.
    """
    run = work / "runs" / entry.name
    folder.mkdir(parents=True, exist_ok=True)
    config = fcmae.load(run).config
    found = neighbours.find(run / "features.npz", config.data.group)
    sheet, shown = neighbours.draw(found, work, entry.show)
    pictures = {
        "loss": run / "loss_curve.png",
        "health": run / "health.png",
        "reconstructions": max((run / "reconstructions").glob("step-*.png")),
    }
    for name, file in pictures.items():
        with Image.open(file) as picture:
            save(picture, name, folder)
    save(sheet, "neighbours", folder)
    held_out = read_paths(run / "held_out.jsonl")
    table, _, sentences = fcmae.load(run).scores.partition("\nBalanced accuracy")
    record = {
        **done,
        "images": len(found.files),
        "classes": len(found.classes),
        "table": table,
        "sentences": ("Balanced accuracy" + sentences).splitlines(),
        "rules": rules(config),
        "in_short": in_short(run),
        "agreement": round(100 * found.agreement, 1),
        "chance": round(100 * found.chance, 1),
        "credits": entry.credits_of([*shown, *held_out], packages),
    }
    text = json.dumps(record, indent=1) + "\n"
    (folder / "record.json").write_text(text, encoding="utf-8")


def in_short(run: Path) -> list[str]:
    """Return what the run's report says in short of its loss and length."""
    text = (run / "report.md").read_text(encoding="utf-8")
    part = text.partition("## In short")[2].partition("\n## ")[0]
    lines = [line[2:] for line in part.splitlines() if line.startswith("- ")]
    wanted = ("Training loss", "Held-out loss", "A loss of 1.0", r"\d[\d,]* steps are")
    kept = [line for line in lines if re.match("|".join(wanted), line)]
    return [line.partition(" For that: ")[0] for line in kept]


def rules(config: PretrainConfig) -> str:
    """Say what the rules chose for a run."""
    peak = config.optim.base_lr * config.train.batch_size / BASE_IMAGES
    changes = {
        "mirrored": config.data.horizontal_flip,
        "upside down": config.data.vertical_flip,
        "turned by quarters": config.data.rotate90,
    }
    chosen = [name for name, is_on in changes.items() if is_on]
    said = ", ".join(chosen) if chosen else "neither mirrored nor turned"
    return f"The rules chose a peak rate of {peak:.2g}, and training pictures {said}."


def scores_of(record: Mapping[str, Any]) -> dict[tuple[str, str], str]:
    """Return {(features, method): "mean +- spread"} of the table of a record."""
    header, *rows = record["table"].splitlines()
    cells = {}
    for row in rows:
        name = row[: row.index("  ")].strip()
        values = re.findall(r"[\d.]+ \+- +[\d.]+", row)
        for method, value in zip(header.split(), values, strict=True):
            cells[name, method] = re.sub(" +", " ", value)
    return cells


def sentences_of(record: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return the sentences on what pretraining helped, and on what it did not."""
    told = [line for line in record["sentences"] if re.match(r"\w+: ", line)]
    told = [line for line in told if not line.startswith("Note: ")]
    helped = [line for line in told if " beats " in line]
    return helped, [line for line in told if line not in helped]


def verdict(record: Mapping[str, Any]) -> str:
    """Say what pretraining was worth, by the intervals alone."""
    helped, _ = sentences_of(record)
    methods = list(dict.fromkeys(method for _, method in scores_of(record)))
    beaten = {
        method: [
            rival
            for rival in RIVALS
            if any(line.startswith(f"{method}: pretrained beats {rival} ") for line in helped)
        ]
        for method in methods
    }
    if all(len(rivals) == len(RIVALS) for rivals in beaten.values()):
        return "helped: beats both by every probe"
    by = [method for method in methods if len(beaten[method]) == len(RIVALS)]
    if by:
        return f"helped in part: beats both by {' and '.join(by)} only"
    said = {
        rival: " and ".join(method for method in methods if rival in beaten[method])
        for rival in RIVALS
    }
    beats = " and ".join(f"{rival} by {probes}" for rival, probes in said.items() if probes)
    return f"did not help: beats {beats} only" if beats else "did not help: beats neither"


def wrapped(command: str) -> str:
    """Return a command on lines that a page has room for, broken between its settings."""
    lines = [""]
    for word in re.split(r" (?=--)", command):
        if len(lines[-1]) + len(word) > COMMAND_WIDTH:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return " \\\n    ".join(lines)


def part(entry: Entry, record: Mapping[str, Any]) -> str:
    """Return the part of the page about a run."""
    helped, not_helped = sentences_of(record)
    total = sum(record["seconds"])
    commands = "\n".join(wrapped(command) for command in record["commands"])
    notes = ("Balanced accuracy", "Note: ")
    note = " ".join(line for line in record["sentences"] if line.startswith(notes))
    credits = f" Photographs on this page by {record['credits']}." if record["credits"] else ""
    pictures = f"gallery/{entry.name}"
    bullets = {
        "What helped": helped or ["Nothing that was measured."],
        "What did not": not_helped or ["Nothing: every comparison counts for pretraining."],
    }
    said = "\n\n".join(
        f"**{title}**\n\n" + "\n".join(f"- {line}" for line in lines)
        for title, lines in bullets.items()
    )
    shown = "\n".join(f"- {line}" for line in [record["rules"], *record["in_short"]])
    return f"""## {entry.title}

{record["images"]:,} {entry.images} Asked of the features: {entry.classes}.

**Pretraining {verdict(record)}.**

![Reconstructions of {entry.name}]({pictures}/reconstructions.png)

*Original, what the encoder sees, the prediction of the hidden patches, both together.*

![Nearest pictures of {entry.name}]({pictures}/neighbours.png)

*A query in the first column, and its five nearest pictures. Of the five nearest of every picture \
{record["agreement"]:.1f} % have its class; of five drawn at random \
{record["chance"]:.1f} % would.*

```text
{record["table"]}
```

{note}

{said}

```bash
# not run by the tests: minutes
export OMP_NUM_THREADS=1
{commands}
```

{total / 60:.1f} minutes in all, {record["processor_seconds"] / 60:.1f} of them of the processor, \
{record["date"]}, {record["machine"]}.

![Loss of {entry.name} over the steps]({pictures}/loss.png)

{shown}

![Health panel of {entry.name}]({pictures}/health.png)

*The health panel ({{doc}}`how to read it <health>`).*

Pictures: {entry.licence}{credits}
"""


def slug(title: str) -> str:
    """Return the anchor that the site gives a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def write_page(entries: Sequence[Entry], docs: Path) -> None:
    """Write gallery.md about all runs that have a record in docs/gallery."""
    records = {}
    for entry in entries:
        file = docs / "gallery" / entry.name / "record.json"
        if file.is_file():
            records[entry.name] = json.loads(file.read_text(encoding="utf-8"))
    shown = [entry for entry in entries if entry.name in records]
    rows = ["| run | pretraining | pretrained | untrained | raw pixels |", "|---|---|---|---|---|"]
    for entry in shown:
        record = records[entry.name]
        scores = scores_of(record)
        linear = [scores[name, "linear"] for name in ("pretrained", *RIVALS)]
        link = f"[{entry.title.partition(':')[0]}](#{slug(entry.title)})"
        rows.append(f"| {link} | {verdict(record)} | {' | '.join(linear)} |")
    table = "\n".join(rows)
    lead = "Linear probe, balanced accuracy in %, mean +- standard deviation over draws of labels:"
    parts = "\n".join(part(entry, records[entry.name]) for entry in shown)
    text = f"{INTRODUCTION}{lead}\n\n{table}\n\n{parts}"
    (docs / "gallery.md").write_text(text, encoding="utf-8")
