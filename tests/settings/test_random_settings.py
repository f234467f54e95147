"""Random settings: one sentence or a config, never a traceback, never a hang."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import signal
import sys
import time
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pictures_on_disk import write_pictures
from settled import settled
from speck import SPECK

from fcmae.__main__ import main
from fcmae.data import find_images
from fcmae.errors import (
    DONE,
    MISTAKE,
    CheckpointError,
    ConfigError,
    DataError,
    UnsupportedModelError,
)
from fcmae.pretraining.task import Pretraining
from fcmae.settings.finetune import FinetuneConfig
from fcmae.settings.pretrain import PretrainConfig
from fcmae.settings.reading import parse
from fcmae.training.loop import TrainingLoop
from fcmae.training.processes import Processes

SECONDS = 60.0  # a case takes milliseconds, and a busy machine a hundred times as long
VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3, 7, 32, 64, 10**6, -(10**30), 2**63, 2**64),
    *(0.5, 0.6, -0.1, 1e-12, 1e300, float("nan"), float("inf"), -float("inf")),
    *("", " ", "x", "null", "nan", "0x10", "1e5", "1_000", "auto", "cpu", "cuda:99", "fp16"),
    *("convnextv2_atto", "../../etc/passwd", "/dev/zero", "/dev/null", "~", "a\nb", "\u00e9\u4e2d"),
    *("!!python/object/apply:os.system ['true']", "[", "{", "}", "*a", "&a [*a]", "%", "@", "`"),
    *([], [1], [1, 2], [0.1, 0.2], [2, 1], [64, 96], ["a", None], [[1]], {}, {"a": 1}, {1: 2}),
    *("A" * 5000, [0] * 1000, "\x00", "-", "--", "--help=", "1" * 5000, b"\xff\xfe", 1j),
]


@contextlib.contextmanager
def time_limit(what: object) -> Iterator[None]:
    def too_long(*_: object) -> None:
        raise AssertionError(f"took more than {SECONDS} s: {what}")

    previous = signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def settings_of(config_class: type) -> list[tuple[str, str]]:
    hints = typing.get_type_hints(config_class)
    return [
        (section.name, inner.name)
        for section in dataclasses.fields(config_class)
        for inner in dataclasses.fields(hints[section.name])
    ]


def misspell(name: str, rng: random.Random) -> str:
    place = rng.randrange(len(name) + 1)
    return name[:place] + rng.choice(["", "x", ".", "_", " ", "\u00df", "0"]) + name[place + 1 :]


def write_yaml(names: list[tuple[str, str]], file: Path, rng: random.Random) -> None:
    """Write a config file with random values, sometimes of random structure or text."""
    content: Any = {}
    for section, name in rng.sample(names, rng.randint(0, 6)):
        section = misspell(section, rng) if rng.random() < 0.05 else section
        name = misspell(name, rng) if rng.random() < 0.05 else name
        content.setdefault(section, {})[name] = rng.choice(VALUES)
    if rng.random() < 0.1:
        content[rng.choice(names)[0]] = rng.choice(VALUES)
    if rng.random() < 0.05:
        content = rng.choice(VALUES)
    text = yaml.dump(content).encode()
    if rng.random() < 0.15:
        place = rng.randrange(len(text))
        text = text[:place] + rng.randbytes(rng.randint(0, 4)) + text[place + rng.randint(0, 9) :]
    file.write_bytes(text)


def random_arguments(names: list[tuple[str, str]], folder: Path, rng: random.Random) -> list[str]:
    arguments = []
    if rng.random() < 0.6:
        write_yaml(names, folder / "config.yaml", rng)
        arguments += ["--config", str(folder / "config.yaml")]
    if rng.random() < 0.8:
        arguments += ["--run.dir=run", "--data.path=data", "--train.steps=4"]
    for section, name in rng.sample(names, rng.randint(0, 4)):
        option = f"--{section}.{name}"
        option = misspell(option, rng) if rng.random() < 0.1 else option
        value = rng.choice(VALUES)
        text = value.decode("latin-1") if isinstance(value, bytes) else str(value)
        arguments += [f"{option}={text}"] if rng.random() < 0.7 else [option, text]
    if rng.random() < 0.05:
        arguments.append(str(rng.choice(VALUES)))
    return arguments


@pytest.mark.parametrize("config_class", [PretrainConfig, FinetuneConfig])
@pytest.mark.parametrize("seed", range(5))
def test_random_settings_give_a_config_or_one_sentence(
    config_class: type, seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names, rng = settings_of(config_class), random.Random(seed)
    good, bad = 0, 0
    for _ in range(120):
        arguments = random_arguments(names, tmp_path, rng)
        with time_limit(arguments):
            try:
                config = parse(config_class, arguments, prog="fcmae")
            except ConfigError as error:
                config = str(error).strip()
            except SystemExit as left:  # --help
                config = left.code in (None, 0)
        assert config
        good += isinstance(config, config_class)
        bad += isinstance(config, str)
    assert good >= 3
    assert bad >= 20
    capsys.readouterr()


PLAUSIBLE: dict[str, list[Any]] = {
    "data.image_size": [32, 64, 96, 33, 0, -32, [64, 96], [64, 65], 16384],
    "data.in_chans": [1, 3, 2, 50, 4097, 0],
    "data.mean": [[0.5], [0.5, 0.5, 0.5], [], None],
    "data.std": [[0.5], [0.5, 0.5, 0.5], [0.0, 1.0, 1.0], None],
    "model.name": ["convnextv2_atto", "convnext_atto", "convnext_atto_ols", "resnet50", ""],
    "model.stem_stride": [1, 2, 4, 3, 0, 64],
    "model.decoder_dim": [1, 7, 16, 0, 10**12],
    "model.decoder_depth": [0, 1, 3, -1, 10**9],
    "model.drop_path": [0.0, 0.5, 1.0],
    "model.grn_scope": ["image", "batch"],
    "model.backend": ["native", "masked_dense"],
    "model.init_from": [None, "/nowhere", "/dev/null", "."],
    "mask.ratio": [0.0, 0.01, 0.5, 0.75, 0.99, 1.0],
    "mask.patch_size": [1, 8, 16, 32, 64, 0, 4096],
    "optim.warmup_steps": [0, 2, 99, 10**11],
    "train.batch_size": [1, 3, 10, 11, 10**18],
    "train.accumulate": [1, 2, 10**18],
    "train.steps": [1, 10**18],
    "train.precision": ["fp32", "bf16", "fp16"],
    "train.device": ["cpu", "cuda", "cuda:7", "tpu"],
    "data.value_range": [None, [0, 4095], [5, 5]],
    "data.rotate90": [True, False],
}


@pytest.mark.parametrize("seed", range(5))
def test_random_plausible_runs_are_made_or_refused_in_one_sentence(
    seed: int, tmp_path: Path
) -> None:
    write_pictures(tmp_path / "data", 10)
    images = find_images(str(tmp_path / "data"))
    alone = Processes(0, 1, torch.device("cpu"))
    refusals = (ConfigError, CheckpointError, DataError, UnsupportedModelError)
    rng, made = random.Random(seed), 0
    for _ in range(24):
        chosen = {name: rng.choice(PLAUSIBLE[name]) for name in rng.sample(list(PLAUSIBLE), 4)}
        settings = {
            "run.dir": tmp_path / "run",
            "data.path": tmp_path / "data",
            "data.image_size": 64,
            "model.name": SPECK,
            "model.decoder_dim": 16,
            "train.batch_size": 2,
            "train.steps": 5,
            **chosen,
        }
        arguments = [f"--{k}={'null' if v is None else v}" for k, v in settings.items()]
        with time_limit(chosen), contextlib.suppress(*refusals):
            config = parse(PretrainConfig, arguments, prog="fcmae")
            TrainingLoop(Pretraining(settled(config), images), alone)
            made += 1
        assert not (tmp_path / "run").exists()
    assert made >= 1


HOSTILE = {
    "a call": "run: !!python/object/apply:os.mkdir ['executed']\n",
    "a module": "run: !!python/module:os\n",
    "a name": "run: {dir: !!python/name:os.system }\n",
    "an object": "run: !!python/object/new:subprocess.Popen [['touch', 'executed']]\n",
    "many anchors": "a: &a [x, x]\n"
    + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [*{chr(97 + n)}, *{chr(97 + n)}]\n" for n in range(24)
    ),
    "depth": "[" * 2000,
    "an endless anchor": "run: &a {dir: *a}\n",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_and_run_nothing(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(HOSTILE[name])
    with time_limit(name):
        status = main(["pretrain", "--config", "config.yaml"])
    assert status == MISTAKE
    assert capsys.readouterr().err.startswith("fcmae: error: ")
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_the_limit_of_a_case_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "SECONDS", 0.05)
    with pytest.raises(AssertionError, match=r"took more than 0\.05 s: x"), time_limit("x"):
        time.sleep(60)


def test_a_good_file_still_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["pretrain", "--run.dir=a", "--data.path=b", "--train.steps=1", "--print_config"])
    assert left.value.code == DONE
    assert "steps: 1" in capsys.readouterr().out
