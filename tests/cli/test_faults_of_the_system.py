"""Every command under every fault of disks, users and machines that a kernel can make.

Whatever happens, a command ends with a documented status; if it failed, with one sentence on
stderr and never a traceback; what was there before is there, whole, and nothing half written.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import faults
import numpy as np
import pytest
import torch
import yaml
from fork_server import SERVER, ForkServer
from masked_pictures import write_bright_masks
from pictures_on_disk import write_pictures
from PIL import Image
from real_runs import options, pretrain_arguments, signal_in, start, wait
from safetensors.torch import load_file

from fcmae.errors import DONE, FAILED, INTERRUPTED, MISTAKE
from fcmae.runs.checkpoints import CheckpointStore
from fcmae.weights.encoder_info import EncoderInfo
from fcmae.weights.export import export

pytestmark = [
    pytest.mark.slow,
    # One process makes what is there before, and its servers, for all: for `--dist loadgroup`.
    pytest.mark.xdist_group("faults"),
]

STEPS = 4
ERROR = "fcmae: error: "


@dataclass(frozen=True)
class Place:
    """Where a case lives: pictures, a finished run, and what the commands write to."""

    root: Path

    @property
    def pictures(self) -> Path:
        return self.root / "pictures"

    @property
    def masks(self) -> Path:
        return self.root / "masks"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def classifier(self) -> Path:
        return self.run / "of-labels" / "classifier.safetensors"

    @property
    def out(self) -> Path:
        return self.root / "out"


def pretrain(place: Place, run: Path, **changes: object) -> list[str]:
    return pretrain_arguments(
        place.pictures,
        run,
        STEPS,
        **{"data__workers": 2, "log__every_steps": 1, "checkpoint__every_steps": 1, **changes},
    )


def finetune(command: str, place: Place, name: str, *extra: str) -> list[str]:
    settings = {
        "run.dir": place.out / name,
        "data.path": place.pictures,
        "data.image_size": 64,
        "data.workers": 2,
        "data.val_share": 0.5,
        "model.name": "convnextv2_speck",
        "train.batch_size": 4,
        "train.steps": STEPS,
        "train.device": "cpu",
        "log.tensorboard": "false",
        "checkpoint.every_steps": 1,
    }
    return [command, *options(settings, {}), *extra]


def segment(place: Place) -> list[str]:
    words = ("--task=segmentation", f"--data.masks={place.masks}", "--data.classes=[dark, bright]")
    return finetune("finetune", place, "masked", *words, "--task.decoder_channels=16")


def ablate(place: Place) -> list[str]:
    base = pretrain(place, place.out, train__steps=2, optim__warmup_steps=0)[1:]
    words = [f"--base.{word[2:]}" for word in base if "run.dir" not in word and "eval" not in word]
    where = ["--run.dir", str(place.out / "grid"), "--evaluate.pictures", "2"]
    return ["ablate", *where, "--grid", "{train.seed: [0]}", *words]


COMMANDS: dict[str, Callable[[Place], list[str]]] = {
    "pretrain": lambda at: pretrain(at, at.out / "run"),
    "finetune": lambda at: finetune("finetune", at, "tuned"),
    "segment": segment,
    "compare": lambda at: finetune(
        "compare", at, "compared", "--shares=[100]", f"--model.weights={at.run}", "--train.steps=1",
    ),
    "ablate": ablate,
    "plan": lambda at: ["plan", *pretrain(at, at.out / "planned")[1:]],
    "inspect": lambda at: [
        "inspect", str(at.pictures), "--workers=2",
        "--output", str(at.out / "page.html"), "--write", str(at.out / "rules.yaml"),
    ],
    "export": lambda at: ["export", str(at.run), "--output", str(at.out / "e.safetensors")],
    "convert": lambda at: ["convert", str(at.run), str(at.out / "c.pth"), "--to", "authors-dense"],
    "reconstruct": lambda at: [
        "reconstruct", str(at.run), str(at.pictures), "--output", str(at.out / "r"), "--limit=3",
    ],
    "embed": lambda at: [
        "embed", str(at.run), str(at.pictures), "--output", str(at.out / "features.npz"),
    ],
    "probe": lambda at: ["probe", str(at.run), str(at.pictures), "--labels=4", "--draws=3"],
    "predict": lambda at: [
        "predict", str(at.classifier), str(at.pictures), "--output", str(at.out / "p.csv"),
    ],
    "curate": lambda at: [
        "curate", str(at.run), str(at.pictures), "--output", str(at.out / "curation"),
        "--workers=2",
    ],
    "submit": lambda at: [
        "submit", *pretrain(at, at.out / "run"), "--slurm.hours=1", "--slurm.gpus=0",
        f"--slurm.folder={at.out / 'jobs'}",
    ],
    "install-minkowski": lambda at: [
        "install-minkowski", "--device=cpu", "--cache", str(at.out / "minkowski"),
    ],
    "report": lambda at: ["report", str(at.run), "--output", str(at.out / "pages")],
    "verify": lambda at: ["verify", str(at.run)],
    "bench": lambda at: [
        "bench", "--models=[convnextv2_speck]", "--image_size=64", "--batch_size=1",
        "--repeats=1", "--parts=[forward]", "--ratios=[0.5]", "--memory=false",
        "--output", str(at.out / "bench"),
    ],
}  # fmt: skip
ALL, NONE = set(COMMANDS), set[str]()
WRITERS = set(COMMANDS) - {"plan", "probe", "verify"}
READERS = set(COMMANDS) - {
    "export",
    "convert",
    "report",
    "verify",
    "bench",
    "install-minkowski",
}  # of pictures
USERS_OF_RUNS = {
    "compare",
    "export",
    "convert",
    "reconstruct",
    "embed",
    "probe",
    "predict",
    "curate",
    "report",
    "verify",
}


@dataclass(frozen=True)
class Trouble:
    """A fault, which folder it is of, and which commands it must or must not stop."""

    fault: faults.Fault
    of: str = "out"
    stops: frozenset[str] = frozenset()
    spares: frozenset[str] = frozenset()
    is_gone: bool = False


def trouble(
    fault: faults.Fault,
    stops: set[str],
    spares: set[str],
    of: str = "out",
    *,
    is_gone: bool = False,
) -> Trouble:
    return Trouble(fault, of, frozenset(stops), frozenset(spares), is_gone)


TROUBLES = {
    "read-only folder": trouble(faults.read_only, WRITERS, ALL - WRITERS),
    "full disk": trouble(faults.full, WRITERS, ALL - WRITERS),
    "quota": trouble(
        faults.small_files, {"pretrain", "finetune", "segment", "export", "convert"}, {"probe"}
    ),
    "folder that vanishes": trouble(faults.vanishing, NONE, ALL - WRITERS, is_gone=True),
    "folder that vanishes later": trouble(
        partial(faults.vanishing, at_write=4), NONE, ALL - WRITERS, is_gone=True
    ),
    "pictures that vanish": trouble(
        faults.vanishing_at_read, NONE, ALL - READERS, "pictures", is_gone=True
    ),
    "run that vanishes": trouble(
        faults.vanishing_at_read, NONE, ALL - USERS_OF_RUNS, "run", is_gone=True
    ),
    "folder of another user": trouble(faults.stranger, WRITERS, ALL - WRITERS),
    "pictures closed to others": trouble(faults.shut_out, READERS, ALL - READERS, "pictures"),
    "run closed to others": trouble(faults.shut_out, USERS_OF_RUNS, ALL - USERS_OF_RUNS, "run"),
    "umask 027": trouble(faults.strict_umask, NONE, ALL),
    "nobody at home": trouble(faults.homeless, NONE, ALL),
    # The script of a job, which submitit writes, must name its folder.
    "C locale": trouble(faults.nothing, {"submit"}, ALL - {"submit"}),
    # Readers that are started again, for a score, may find no room for their locks: a sentence.
    "little shared memory": trouble(
        partial(faults.little_shared_memory, size="100k"), NONE, ALL - {"compare"}
    ),
    "no shared memory": trouble(
        partial(faults.little_shared_memory, size="4k"), NONE, ALL - READERS
    ),
    "few descriptors": trouble(partial(faults.few_descriptors, number=20), NONE, {"export"}),
    "hardly a descriptor": trouble(partial(faults.few_descriptors, number=11), NONE, NONE),
    "no room for temporary files": trouble(
        faults.no_room_for_temporary_files, NONE, {"export", "embed", "report"}
    ),
    # Where the result is what is printed, it is lost; a training has its own in its folder.
    "terminal on a full disk": trouble(
        faults.full_terminal, {"plan", "probe", "verify"}, {"pretrain", "finetune", "compare"}
    ),
}
assert len(TROUBLES) * len(COMMANDS) >= 150


@pytest.fixture(scope="module")
def c_locale() -> Iterator[ForkServer]:
    """A server of processes whose Python reads and prints ASCII."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("LC_ALL", "C"), ("PYTHONUTF8", "0"), ("PYTHONCOERCECLOCALE", "0")):
            patch.setenv(name, value)
        server = ForkServer("real_runs")
        yield server
        server.close()


@pytest.fixture(scope="module")
def before() -> Iterator[Path]:
    """What is there before: pictures, a run, and the results of every command.

    In a folder that other users may enter, with letters in its name that ASCII does not have.
    """
    root = Path(tempfile.mkdtemp(prefix="faults-"))
    place = Place(root / "before")
    for seed, name in enumerate(("hell-\u00e4", "dunkel-\u00f6")):
        write_pictures(place.pictures / name, 8, seed=seed)
    faults.write_programs(place.root / faults.PROGRAMS)
    write_bright_masks(place.pictures, place.masks)
    log = root / "log"
    assert wait(start(pretrain(place, place.run), log)) == DONE, log.read_text()
    write_classifier(place.classifier)
    stopped = signal_in("step", 2, signal.SIGTERM)
    for name in ("pretrain", "finetune", "segment"):
        arguments = COMMANDS[name](place)
        assert wait(start(arguments, log, before=stopped)) == INTERRUPTED, log.read_text()
    not_again = {"pretrain", "finetune", "segment", "compare", "ablate", "submit"}
    for name in sorted(WRITERS - not_again - {"install-minkowski"}):
        assert wait(start(COMMANDS[name](place), log)) == DONE, log.read_text()
    os.chmod(root, 0o755)
    yield place.root
    shutil.rmtree(root)


def write_classifier(path: Path) -> None:
    """Write an untrained classifier that says how images become its input."""
    info = EncoderInfo(
        model_name="convnextv2_speck", in_chans=3, stem_stride=4, image_size=(64, 64),
        mean=(0.5,) * 3, std=(0.25,) * 3, crop_pct=1.0, classes=("bright", "dark"),
    )  # fmt: skip
    export(info.create_model(2), "timm", path, info)


@cache
def is_possible(fault: faults.Fault) -> bool:
    """Whether this user and kernel can make a fault."""
    if fault in (faults.stranger, faults.shut_out, faults.homeless):
        trial = faults.can_become
    elif fault in (
        faults.read_only, faults.full, faults.little_shared_memory,
        faults.no_room_for_temporary_files,
    ):  # fmt: skip
        trial = faults.can_mount
    else:
        return True
    return SERVER.wait(SERVER.start(trial, Path(os.devnull))) == 0


def is_whole(path: Path) -> bool:
    """Whether a file can be read to its end by whoever it is for."""
    if path.suffix == ".safetensors":
        return bool(load_file(path))
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return all(arrays[name].size >= 0 for name in arrays)
    if path.suffix in (".pth", ".pt"):
        return bool(torch.load(path, weights_only=True))
    if path.suffix == ".png":
        with Image.open(path) as picture:
            picture.load()
        return True
    if path.suffix == ".yaml":
        return bool(yaml.safe_load(path.read_text(encoding="utf-8")))
    if path.suffix == ".html":
        return path.read_text(encoding="utf-8").rstrip().endswith("</html>")
    return True


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


known = cache(contents)  # of folders that no case changes


@cache
def newest_step(checkpoints: Path) -> int:
    newest = CheckpointStore(checkpoints).load_newest()
    assert newest is not None
    return newest[0]


def assert_nothing_lost(found: Path, earlier: Path) -> None:
    """Assert that every file of before is there, as it was or whole, and no part of another."""
    is_checkpoint = "checkpoints"
    there = contents(found)
    for name, content in known(earlier).items():
        if is_checkpoint in name or name.endswith("lock"):
            continue  # pruned as training goes on; checked below
        assert name in there, f"{name} is gone"
        assert there[name] == content or is_whole(found / name), name
    for name, content in there.items():
        assert ".partial" not in name, name
        assert known(earlier).get(name) == content or is_whole(found / name), name
    for folder in earlier.rglob("checkpoints"):
        newest = CheckpointStore(found / folder.relative_to(earlier)).load_newest()
        assert newest is not None
        assert newest[0] >= newest_step(folder)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", TROUBLES)
def test_a_fault_is_one_sentence_and_costs_nothing(
    name: str, command: str, before: Path, c_locale: ForkServer
) -> None:
    found = TROUBLES[name]
    if not is_possible(getattr(found.fault, "func", found.fault)):
        pytest.skip("NOT RUN: this user may not mount here or become another")
    root = Path(tempfile.mkdtemp(prefix="case-", dir=before.parent))
    os.chmod(root, 0o777)
    place = Place(root / "\u00e9t\u00e9")
    shutil.copytree(before, place.root)
    if name != "folder of another user":
        for path in (place.out, *place.out.rglob("*")):
            path.chmod(0o777 if path.is_dir() else 0o666)
    server = c_locale if name == "C locale" else SERVER
    folder, log, stderr, seen = place.root / found.of, root / "log", root / "stderr", root / "seen"
    arguments = COMMANDS[command](place)
    shown = str(seen) if found.fault is faults.full else None  # seen by that process alone
    work = partial(faults.run_with, arguments, found.fault, str(folder), str(stderr), shown)
    status = server.wait(server.start(work, log), 120)
    lines = [
        line
        for file in (stderr, log)
        for line in file.read_text(errors="backslashreplace").replace("\r", "\n").split("\n")
        if "No pretrained configuration" not in line  # timm, of the tiny model of the tests
    ]
    told = "\n".join(line for line in lines if not line.endswith(("it/s]", "?step/s]")))
    # An ablation goes on when a cell fails, and says so of each.
    cells = [
        line for line in lines if ": failed (1 of 2): " in line or ": failed (2 of 2): " in line
    ]
    errors = [line for line in lines if ERROR in line] or cells[-1:]

    assert "Traceback" not in told, told
    assert "Exception ignored" not in told, told
    assert status in (DONE, FAILED, MISTAKE), told
    assert len(errors) == (0 if status == DONE else 1), told
    if command in found.stops:
        assert status != DONE, told
    if command in found.spares:
        assert status == DONE, told
    if name == "umask 027":
        was = known(before / "out")
        for file, content in contents(place.out).items():
            is_appended = Path(file).name in ("lock", "metrics.jsonl")  # which keep their mode
            if was.get(file) != content and not (is_appended and file in was):
                assert (place.out / file).stat().st_mode & 0o777 == 0o640, file
    if not found.is_gone:
        assert_nothing_lost(seen if shown else place.out, before / "out")
    for kept in {"pictures", "run"} - ({found.of} if found.is_gone else NONE):
        assert contents(place.root / kept) == known(before / kept)
    shutil.rmtree(root)
