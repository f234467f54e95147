"""The gallery's script runs commands, draws pictures and claims what intervals allow, no more."""

from __future__ import annotations

import gzip
import importlib
import json
import re
import shlex
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest
from example_scripts import EXAMPLES
from PIL import Image

DOCS = EXAMPLES.parent / "docs"
PICTURES = ("loss", "health", "reconstructions", "neighbours")
MOST_BYTES = 2_000_000  # of all pictures together


class Gallery(NamedTuple):
    """The modules of examples/gallery."""

    make: ModuleType
    entries: ModuleType
    page: ModuleType
    neighbours: ModuleType
    brains: ModuleType


@pytest.fixture
def gallery(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gallery]:
    monkeypatch.syspath_prepend(str(EXAMPLES / "gallery"))
    yield Gallery(*(importlib.import_module(name) for name in Gallery._fields))
    for name in Gallery._fields:
        del sys.modules[name]


def record_of(**gaps: tuple[str, str]) -> dict[str, object]:
    """Return a record whose pretrained features beat ("+"), equal or lose ("-") to the rivals."""
    verbs = {"+": "pretrained beats {} by 5.0 +- 1.0 points.", "-": "pretrained is worse than {}."}
    noise = "no difference between pretrained and {} beyond the noise of 3 label draws."
    rivals = ("untrained", "raw pixels")
    told = [
        f"{method}: {verbs.get(sign, noise).format(rival)}"
        for method, signs in gaps.items()
        for rival, sign in zip(rivals, signs, strict=True)
    ]
    rows = [f"{name:<12}" + "   70.0 +-  1.5" * len(gaps) for name in ("pretrained", *rivals)]
    header = " " * 12 + "  ".join(gaps)
    return {
        "table": "\n".join([header, *rows]),
        "sentences": ["Balanced accuracy in %: so.", "Note: 3 left out.", *told, "A difference."],
    }


def test_what_helped_is_what_counts_by_its_interval(gallery: Gallery) -> None:
    record = record_of(kNN=("+", "-"), linear=("+", "0"))
    helped, not_helped = gallery.page.sentences_of(record)
    assert [line.split(" by ")[0] for line in helped] == [
        "kNN: pretrained beats untrained",
        "linear: pretrained beats untrained",
    ]
    assert len(not_helped) == 2
    assert all("raw pixels" in line for line in not_helped)
    assert gallery.page.scores_of(record)["raw pixels", "linear"] == "70.0 +- 1.5"


@pytest.mark.parametrize(
    ("knn", "linear", "said"),
    [
        ("++", "++", "helped: beats both by every probe"),
        ("+0", "++", "helped in part: beats both by linear only"),
        ("+0", "+-", "did not help: beats untrained by kNN and linear only"),
        ("+0", "0+", "did not help: beats untrained by kNN and raw pixels by linear only"),
        ("0-", "00", "did not help: beats neither"),
    ],
)
def test_the_verdict_follows_from_the_sentences(
    gallery: Gallery, knn: str, linear: str, said: str
) -> None:
    assert gallery.page.verdict(record_of(kNN=tuple(knn), linear=tuple(linear))) == said


def test_commands_of_the_page_are_those_that_run(gallery: Gallery) -> None:
    for entry in gallery.entries.ENTRIES:
        for words in gallery.make.commands_of(entry, {}):
            shown = gallery.page.wrapped(shlex.join(words))
            assert shlex.split(shown.replace("\\\n", "")) == words
            assert all(len(line) <= 100 for line in shown.splitlines())


def test_nearest_pictures_are_of_other_groups_and_queries_of_all_classes(
    gallery: Gallery, tmp_path: Path
) -> None:
    """Two classes along two directions; twins in the same slab are nearer than all others."""
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    vectors = np.eye(4)[labels] + 0.1 * rng.normal(size=(40, 4))
    vectors[1::20] = vectors[3::20] = vectors[1]
    files = np.array([f"a/slab{place // 4:02d}-{place}.png" for place in range(40)])
    np.savez(tmp_path / "f.npz", features=vectors, files=files, labels=labels, classes=["a", "b"])
    alone = gallery.neighbours.find(tmp_path / "f.npz", None)
    grouped = gallery.neighbours.find(tmp_path / "f.npz", "(slab[0-9]+)")
    assert 3 in alone.places[1]
    slabs = np.arange(40) // 4
    assert (slabs[grouped.places] != slabs[:, None]).all()
    assert grouped.agreement == 1
    assert 0.4 < grouped.chance < 0.6
    assert [int(labels[query]) for query in grouped.queries()] == [0, 1, 0, 1, 0]


def test_sections_of_brains_have_the_lobe_of_their_middle(gallery: Gallery, tmp_path: Path) -> None:
    """A volume whose intensity is the number of its region, in a file of NIfTI-1."""
    codes = np.zeros((80, 24, 90), np.uint8, order="F")
    codes[:40, :, 10:80], codes[40:, :, 10:80] = 5, 51
    header = bytearray(352)
    struct.pack_into("<4h", header, 40, 3, *codes.shape)
    struct.pack_into("<h", header, 70, 2)
    struct.pack_into("<f", header, 108, 352.0)
    folder = tmp_path / gallery.brains.FOLDER
    folder.mkdir(parents=True)
    for name in ("ch2", "aal"):
        data = gzip.compress(bytes(header) + codes.tobytes(order="F"))
        (folder / f"{name}.nii.gz").write_bytes(data)
    (folder / "aal.nii.txt").write_text("5 Frontal_Sup_Orb_L 2111\n51 Occipital_Mid_L 5201\n \n")
    found = list(gallery.brains.human(tmp_path))
    again = list(gallery.brains.human(tmp_path))
    assert [name for _, name, _ in found] == [name for _, name, _ in again]
    assert {lobe for lobe, _, _ in found} == {"frontal", "occipital"}
    for lobe, name, pixels in found:
        assert pixels.shape == (64, 64)
        assert re.fullmatch(r"slab0[0-2]-\d{3}-\d", name)
        share = (pixels == 5).sum() / (pixels > 0).sum()
        assert share > 0.5 if lobe == "frontal" else share <= 0.5


def test_the_page_is_what_the_records_make(gallery: Gallery, tmp_path: Path) -> None:
    for entry in gallery.entries.ENTRIES:
        source = DOCS / "gallery" / entry.name / "record.json"
        place = tmp_path / "gallery" / entry.name / "record.json"
        place.parent.mkdir(parents=True)
        place.write_bytes(source.read_bytes())
    gallery.page.write_page(gallery.entries.ENTRIES, tmp_path)
    made = (tmp_path / "gallery.md").read_text(encoding="utf-8")
    assert made == (DOCS / "gallery.md").read_text(encoding="utf-8")


def test_the_gallery_has_runs_of_the_kinds_that_it_promises(gallery: Gallery) -> None:
    entries = {entry.name: entry for entry in gallery.entries.ENTRIES}
    records = {
        name: json.loads((DOCS / "gallery" / name / "record.json").read_text(encoding="utf-8"))
        for name in entries
    }
    assert len(records) >= 5
    assert any("data.in_chans" not in entry.settings for entry in entries.values())  # colours
    assert {"data.in_chans": "5", "data.value_range": "[0, 33280]"}.items() <= dict(
        entries["macaque"].settings
    ).items()
    verdicts = [gallery.page.verdict(record) for record in records.values()]
    assert any(said.startswith("helped") for said in verdicts)
    assert any(said.startswith("did not help") for said in verdicts)
    for name, record in records.items():
        assert record["commands"][0].startswith(f"fcmae pretrain --run.dir runs/{name} "), name
        assert 0 < sum(record["seconds"]) < 900
    files = [DOCS / "gallery" / name / f"{picture}.png" for name in entries for picture in PICTURES]
    assert sum(file.stat().st_size for file in files) < MOST_BYTES


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--set", "train.steps"], 2, "--set: got 'train.steps', expected SETTING=VALUE"),
        (["--only", "textures", "--set", "train.steps=none"], "ended with status", ""),
    ],
)
def test_what_cannot_work_is_told_in_a_sentence(
    gallery: Gallery,
    words: list[str],
    status: int | str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(command: list[str], **_: object) -> None:
        raise subprocess.CalledProcessError(2, command)

    monkeypatch.setattr(gallery.entries, "write_images", lambda *_: None)
    monkeypatch.setattr(subprocess, "run", fails)
    with pytest.raises(SystemExit) as stopped:
        gallery.make.main([*words, "--work", str(tmp_path), "--docs", str(tmp_path / "docs")])
    assert str(status) in str(stopped.value.code)
    assert said in capsys.readouterr().err
    assert not (tmp_path / "docs").exists()


@pytest.mark.slow
def test_a_run_of_the_gallery_has_all_parts_and_is_not_run_again(
    gallery: Gallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pictures(packages: Path) -> Iterator[tuple[str, str, np.ndarray]]:
        rng = np.random.default_rng(0)
        for label in ("bright", "dark"):
            for number in range(60):
                level = 0.5 if label == "dark" else 1.0
                pixels = rng.integers(0, 4096, (40, 40, 5)) * level
                yield label, f"{number:02d}", pixels.astype(np.uint16)

    tiny = gallery.entries.Entry(
        "tiny",
        "Noise",
        "Noise of five channels.",
        "bright or dark",
        "Made.",
        {"data.in_chans": "5", "data.value_range": "[0, 4095]"},
        pictures,
        show=(0, 4095),
    )
    monkeypatch.setattr(gallery.entries, "ENTRIES", [tiny])
    words = ["--work", str(tmp_path / "work"), "--docs", str(tmp_path / "docs"), "--note", "a test"]
    words += ["--set", "data.image_size=64", "train.steps=4", "evaluate.draws=3"]
    gallery.make.main(words)
    page = (tmp_path / "docs" / "gallery.md").read_text(encoding="utf-8")
    for part in ("Linear probe", "## Noise", "What helped", "What did not", "one thread, a test"):
        assert part in page, part
    assert "--train.steps 4" in page.replace("\\\n    ", "")
    for name in PICTURES:
        with Image.open(tmp_path / "docs" / "gallery" / "tiny" / f"{name}.png") as picture:
            assert min(picture.size) > 100
        assert f"(gallery/tiny/{name}.png)" in page
    metrics = tmp_path / "work" / "runs" / "tiny" / "metrics.jsonl"
    before = metrics.stat().st_mtime_ns
    gallery.make.main(words)
    assert metrics.stat().st_mtime_ns == before
    assert (tmp_path / "docs" / "gallery.md").read_text(encoding="utf-8") == page
