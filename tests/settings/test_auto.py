"""`auto` as a word of settings: who takes it, who does not, and times in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from fcmae.errors import ConfigError
from fcmae.settings.ablation import parse_ablation
from fcmae.settings.auto import autos, seconds_of, time_in_words
from fcmae.settings.finetune import FinetuneConfig
from fcmae.settings.pretrain import PretrainConfig
from fcmae.settings.reading import from_plain, load, parse, to_yaml

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
PUBLISHED = [
    path
    for folder in ("pretrain", "finetune")
    for path in sorted((CONFIGS / folder).glob("*.yaml"))
    if path.stem not in ("small_data", "continue", "segmentation")
]
STUDIES = sorted((CONFIGS / "ablation").glob("*.yaml"))
PLAIN = ["--run.dir", "run", "--data.path", "images"]


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: f"{path.parent.stem}-{path.stem}")
def test_a_published_recipe_leaves_nothing_to_a_rule(path: Path) -> None:
    kind = PretrainConfig if path.parent.stem == "pretrain" else FinetuneConfig
    config = parse(kind, ["--config", str(path), "--data.path", "images"], prog="fcmae")
    beside = {"optim.warmup_steps", "compare.scratch_base_lr"}
    assert set(autos(config)) <= beside, (
        "warm-up is said in epochs, the rate from scratch is theirs"
    )
    assert config.optim.warmup_epochs is not None
    assert (config.optim.schedule, config.train.time) == ("cosine", None)
    flips = config.data if isinstance(config, PretrainConfig) else config.augment
    assert (flips.horizontal_flip, flips.vertical_flip, flips.rotate90) == (True, False, False)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_the_studies_that_were_measured_leave_nothing_to_a_rule(path: Path) -> None:
    ablation = parse_ablation(["--config", str(path)])
    base = from_plain(PretrainConfig, {**ablation.base, "run": {"dir": "x"}}, where="base")
    assert list(autos(base)) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--optim.base_lr", "fast"], "optim.base_lr: got 'fast', expected a number or auto"),
        (["--data.rotate90", "3"], "data.rotate90: got '3', expected true or false or auto"),
        (["--optim.base_lr", "-1"], "optim.base_lr: got -1.0, expected a finite number of 0 or mo"),
        (["--mask.ratio", "auto"], "mask.ratio: got 'auto', expected a number"),
        (["--train.time", "soon"], "train.time: got 'soon', expected a time such as 20min, 1.5h"),
    ],
)
def test_what_is_neither_a_value_nor_auto_is_one_sentence(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(PretrainConfig, [*PLAIN, *words], prog="fcmae")


def test_auto_is_the_default_and_can_be_said() -> None:
    config = parse(PretrainConfig, [*PLAIN, "--optim.base_lr", "auto"], prog="fcmae")
    assert config == parse(PretrainConfig, PLAIN, prog="fcmae")
    assert "optim.base_lr" in set(autos(config))
    assert "train.device" not in set(autos(config)), "its auto is no rule of a recipe"
    said = parse(PretrainConfig, [*PLAIN, "--optim.base_lr", "4e-3"], prog="fcmae")
    assert "optim.base_lr" not in set(autos(said))


def test_settings_with_auto_survive_being_written_and_read(tmp_path: Path) -> None:
    config = parse(FinetuneConfig, PLAIN, prog="fcmae")
    (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert load(FinetuneConfig, tmp_path / "config.yaml") == config


def test_print_config_shows_what_is_left_to_a_rule(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(PretrainConfig, [*PLAIN, "--print_config"], prog="fcmae")
    assert "base_lr: auto" in capsys.readouterr().out


def test_a_later_length_replaces_an_earlier_one_of_any_kind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my.yaml").write_text("train: {time: 20min}\noptim: {warmup_epochs: 3}\n")
    words = ["--config", str(tmp_path / "my.yaml"), *PLAIN]
    config = parse(PretrainConfig, [*words, "--train.steps", "7"], prog="fcmae")
    assert (config.train.steps, config.train.epochs, config.train.time) == (7, None, None)
    assert "train.steps 7 of the command line replaces train.time 20min" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "seconds"),
    [("90s", 90), ("20min", 1200), ("1.5h", 5400), ("2d", 172_800), ("1h30min", 5400)],
)
def test_a_time_in_words_is_seconds(words: str, seconds: float) -> None:
    assert seconds_of(words) == seconds


@pytest.mark.parametrize("words", ["", "20", "min", "-5min", "0s", "1e999h", "nans", "5 weeks"])
def test_what_is_no_time_is_refused(words: str) -> None:
    with pytest.raises(ConfigError, match=r"train\.time: got .* expected a time such as 20min"):
        seconds_of(words)


def test_seconds_are_said_as_times_are_read() -> None:
    for seconds in (45, 1200, 9000):
        assert seconds_of(time_in_words(seconds)) == pytest.approx(seconds, rel=0.01)
