"""Help: short by default, whole when asked, true to the dataclasses."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fcmae.settings.bench import BenchSettings
from fcmae.settings.finetune import FinetuneConfig
from fcmae.settings.help import help_text, sections_of
from fcmae.settings.pretrain import PretrainConfig
from fcmae.settings.reading import parse, to_plain

TWO_SCREENS = 60  # lines of 80 columns
CONFIGS = [PretrainConfig, FinetuneConfig]


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.parametrize("config_class", CONFIGS)
def test_help_fits_two_screens_and_names_the_rest(config_class: type) -> None:
    lines = help_text(config_class, ["--help"], "fcmae it").splitlines()
    assert len(lines) <= TWO_SCREENS
    assert max(map(len, lines)) <= 80
    assert [line[4:] for line in lines if line.startswith("  --")] == list(config_class.COMMON)
    assert any("fcmae it --help_all" in line for line in lines)


@pytest.mark.parametrize("config_class", [*CONFIGS, BenchSettings])
def test_every_setting_has_a_sentence_and_its_default(config_class: type) -> None:
    text = help_text(config_class, ["--help_all"], "fcmae it")
    for section in sections_of(config_class):
        for setting in section.settings:
            assert f"\n  --{setting.name}\n" in text
            assert setting.sentence.endswith("."), setting.name


def test_the_defaults_are_those_of_a_run() -> None:
    config = parse(
        PretrainConfig, ["--run.dir", "b", "--data.path", "a", "--train.steps", "1"], prog=""
    )
    plain = to_plain(config)
    told = {s.name: s.default for section in sections_of(PretrainConfig) for s in section.settings}
    assert told["mask.ratio"] == str(plain["mask"]["ratio"])
    assert told["run.dir"] is None


def test_a_reader_that_leaves_gets_no_traceback() -> None:
    command = f"{sys.executable} -m fcmae pretrain --help_all | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stderr == ""
