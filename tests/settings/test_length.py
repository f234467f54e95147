"""The length of a run: what follows it, and the command that makes a run longer."""

import shlex
from pathlib import Path
from typing import Any

import pytest

from fcmae.errors import ConfigError
from fcmae.settings.ablation import parse_ablation
from fcmae.settings.auto import AUTO
from fcmae.settings.length import is_extensible, length_names, longer_command
from fcmae.settings.pretrain import PretrainConfig
from fcmae.settings.reading import parse, to_plain, to_yaml

RUN = ["--run.dir", "a", "--data.path", "b"]


def parse_run(*words: str, run_dir: object = "a") -> PretrainConfig:
    return parse(PretrainConfig, [*RUN, *words, "--run.dir", str(run_dir)], prog="fcmae pretrain")


@pytest.mark.parametrize(
    ("file", "words", "warmup", "told"),
    [
        ("{epochs: 800}, {warmup_epochs: 40}", "--train.steps 400", (20, None), "steps 20 follows"),
        ("{epochs: 800}, {warmup_epochs: 40}", "--train.epochs 50", (None, 2.5), "epochs 2.5 foll"),
        ("{steps: 400}, {warmup_steps: 40}", "--train.steps=39", (4, None), "share of 10 %"),
        ("{steps: 400}, {warmup_steps: 40}", "--train.epochs 3", (None, 0.3), "warmup_epochs 0.3"),
        ("{steps: 400}, {warmup_steps: 40}", "--train.steps=400", (40, None), None),
        ("{steps: 400}, {warmup_steps: 0}", "--train.steps=40", (0, None), None),
        ("{steps: 400}, {warmup_epochs: 2}", "--train.steps=40", (None, 2.0), None),
        (
            "{epochs: 800}, {warmup_epochs: 40}",
            "--train.steps 400 --optim.warmup_steps 7",
            (7, None),
            None,
        ),
        (
            "{epochs: 800}, {warmup_epochs: 40}",
            "--optim.warmup_steps 7 --train.steps 400",
            (7, None),
            None,
        ),
    ],
)
def test_the_warm_up_follows_a_length_of_another_source(
    file: str,
    words: str,
    warmup: tuple[int | None, float | None],
    told: str | None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write(tmp_path / "a.yaml", file)
    config = parse_run("--config", path, *words.split())
    steps = config.optim.warmup_steps
    assert (None if steps == AUTO else steps, config.optim.warmup_epochs) == warmup
    said = capsys.readouterr().err
    assert ("follows train" in said) == (told is not None)
    assert (told or "") in said


@pytest.mark.parametrize("value", [".nan", ".inf", "[1]", "many", "1" * 400, "-3"])
def test_a_warm_up_that_is_none_is_left_to_the_checks(value: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", f"{{epochs: 8}}, {{warmup_epochs: {value}}}")
    with pytest.raises(ConfigError, match=r"optim\.warmup_epochs: got "):
        parse_run("--config", path, "--train.steps", "400")


@pytest.mark.parametrize("value", [".nan", ".inf", "0", "[1]", "many", "1" * 400, "-3", "true"])
def test_a_warm_up_does_not_follow_a_length_that_is_none(value: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", f"{{epochs: {value}}}, {{warmup_epochs: 40}}")
    assert parse_run("--config", path, "--train.steps", "400").optim.warmup_epochs == 40


def write(path: Path, sections: str) -> str:
    """Write a file with the given sections train and optim."""
    train, optim = sections.split(", {")
    path.write_text(f"train: {train}\noptim: {{{optim}\n")
    return str(path)


def test_the_warm_up_of_a_run_that_is_there_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "a.yaml", "{epochs: 800}, {warmup_epochs: 40}")
    first = parse_run("--config", path, "--train.steps=400", run_dir=tmp_path / "run")
    assert first.optim.warmup_steps == 20
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(to_yaml(first))
    capsys.readouterr()
    for given in (path, str(tmp_path / "run" / "config.yaml")):
        longer = parse_run("--config", given, "--train.steps=800", run_dir=tmp_path / "run")
        assert (longer.optim.warmup_steps, longer.optim.warmup_epochs) == (20, None)
        assert "follows train" not in capsys.readouterr().err
    new = parse_run("--config", given, "--train.steps=800", run_dir=tmp_path / "new")
    assert new.optim.warmup_steps == 40


def test_the_warm_up_of_an_ablations_base_run_follows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "a.yaml", "{epochs: 800}, {warmup_epochs: 40}")
    grid = ["--grid", "{train.seed: [0]}", "--run.dir", str(tmp_path / "run")]
    found = parse_ablation([*grid, "--base.config", path, "--base.train.steps", "400"])
    assert found.base["optim"] == {"warmup_steps": 20}
    assert "the warm-up keeps the share of 5 %" in capsys.readouterr().err


def changed(config: PretrainConfig, schedule: str) -> dict[str, Any]:
    plain = to_plain(config)
    return {**plain, "optim": {**plain["optim"], "schedule": schedule}}


def test_only_runs_that_are_constant_before_their_decay_are_extensible() -> None:
    wsd, cosine = parse_run("--train.steps=4", "--optim.schedule=wsd"), parse_run("--train.steps=4")
    assert is_extensible(to_plain(wsd), wsd)
    assert not is_extensible(changed(wsd, "cosine"), wsd)
    assert not is_extensible(to_plain(wsd), cosine)
    assert not is_extensible({}, wsd)
    assert length_names(wsd) == {"train.steps", "train.epochs", "optim.decay_share"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--train.steps 4 --optim.schedule wsd", "--train.steps 8"),
        ("--train.epochs 1.5 --optim.schedule wsd", "--train.epochs 3"),
        (
            "--train.steps 4",
            "--train.steps 8 --optim.schedule wsd --run.dir 'my runs/a-longer'",
        ),
    ],
)
def test_the_command_that_makes_a_run_longer_is_one_that_works(
    words: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = parse_run(*words.split(), run_dir="my runs/a/")
    command = longer_command(config)
    assert command == f"fcmae pretrain --config 'my runs/a/config.yaml' {expected}"
    Path("my runs/a").mkdir(parents=True)
    Path("my runs/a/config.yaml").write_text(to_yaml(config))
    longer = parse(PretrainConfig, shlex.split(command)[2:], prog="fcmae pretrain")
    assert longer.optim.schedule == "wsd"
