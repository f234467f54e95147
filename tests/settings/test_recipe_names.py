"""Recipes that come with the package are found by their names."""

from __future__ import annotations

from pathlib import Path

import pytest

from fcmae.errors import ConfigError
from fcmae.settings.files import find_config, read_yaml, shipped

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def test_every_recipe_has_its_name() -> None:
    assert "pretrain/atto" in shipped()
    assert {find_config(name) for name in shipped()} == set(CONFIGS.rglob("*.yaml"))


def test_a_name_that_only_one_folder_has_is_enough() -> None:
    assert find_config("small_data") == CONFIGS / "pretrain" / "small_data.yaml"


def test_a_name_of_several_recipes_asks_which() -> None:
    with pytest.raises(ConfigError, match=r"finetune/atto or pretrain/atto"):
        read_yaml("atto", "--config")


def test_a_file_of_ones_own_wins_and_a_folder_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("quickstart").mkdir()
    assert read_yaml("quickstart", "--config")["data"]["path"] == "elpv"
    Path("small_data").write_text("data: {path: mine}\n")
    assert read_yaml("small_data", "--config") == {"data": {"path": "mine"}}


def test_a_name_that_is_none_gets_near_ones() -> None:
    with pytest.raises(ConfigError, match=r"'quickstrat' cannot be read.*such as quickstart"):
        read_yaml("quickstrat", "--config")
