"""Settings: read strictly, refused in one sentence, written back unchanged."""

from __future__ import annotations

from pathlib import Path

import pytest

from fcmae.errors import ConfigError
from fcmae.settings.pretrain import PretrainConfig
from fcmae.settings.reading import forbidden_changes, from_plain, load, parse, to_plain, to_yaml

MINIMAL = ["--run.dir", "runs/a", "--data.path", "photos", "--train.steps", "3"]


def parse_minimal(*extra: str) -> PretrainConfig:
    return parse(PretrainConfig, [*MINIMAL, *extra], prog="fcmae pretrain")


def test_later_arguments_win_over_the_file_and_earlier_ones(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("mask: {ratio: 0.5}\noptim: {base_lr: 1e-3, weight_decay: 0.1}\n")
    config = parse_minimal("--config", str(file), "--mask.ratio", "0.7")
    assert config.mask.ratio == 0.7
    assert config.optim.base_lr == 1e-3  # YAML 1.1 alone would read it as a text
    assert config.optim.weight_decay == 0.1
    assert config.optim.betas == (0.9, 0.95)


def test_lists_and_pairs_are_read() -> None:
    config = parse_minimal("--data.path", "[a, b]", "--data.image_size", "[64, 96]")
    assert config.data.path == ["a", "b"]
    assert config.data.image_size == (64, 96)


def test_written_settings_are_read_back_equal(tmp_path: Path) -> None:
    changed = "--data.image_size [64,96] --data.mean [0.1,0.2,0.3] --data.std [1,1,1]"
    config = parse_minimal(*changed.split(), "--checkpoint.every_steps", "null")
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))
    assert load(PretrainConfig, file) == config


def test_changes_that_a_continued_run_must_not_make_are_named() -> None:
    old = parse_minimal("--train.batch_size", "8", "--data.workers", "1")
    new = parse_minimal("--mask.ratio", "0.7", "--train.batch_size", "4", "--data.workers", "0")
    assert forbidden_changes(to_plain(old), new) == {"mask.ratio": (0.6, 0.7)}
    assert forbidden_changes(to_plain(old), old) == {}


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--mask.rato", "0.5"], "unknown setting 'mask.rato'. Did you mean mask.ratio?"),
        (["--ratio", "0.5"], "unknown setting 'ratio'. Did you mean mask.ratio?"),
        (["--zebra", "0.5"], "unknown setting 'zebra'. --help lists all settings."),
        (["--data", "x.yaml"], "unknown setting 'data'"),
        (["--train.steps", "many"], "train.steps: got 'many', expected a whole number or null."),
        (["--train.steps", "2.5"], "train.steps: got '2.5', expected a whole number or null."),
        (["--model.backend", "fast"], "expected one of native, masked_dense, minkowski"),
        (["--data.horizontal_flip", "7"], "data.horizontal_flip: got '7', expected true or false"),
        (["--optim.betas", "[1, 2, 3]"], "expected a list of 2, each a number"),
        (["--data.image_size", "[3, a]"], "a whole number or a list of 2, each a whole number"),
        (["--mask.ratio", "1.5"], "mask.ratio: got 1.5, expected a share between 0 and 1"),
        (["--train.epochs", "2"], "train.steps, train.epochs: got 3 and 2.0, expected exactly one"),
        (["--train.batch_size", "0"], "train.batch_size: got 0, expected 1 or more"),
        (["--optim.base_lr", "-1"], "optim.base_lr: got -1.0, expected a finite number of 0"),
        (["--data.mean", "[0.5]"], "data.mean, data.std: got one of them, expected both"),
        (["--data.mean", "[0.5]", "--data.std", "[0.5]"], "data.mean: got .* expected 3 finite"),
        (["--data.crop_scale", "[0.5, 0.2]"], "data.crop_scale: got"),
        (["--data.value_range", "[5, 5]"], "data.value_range: got"),
        (["--data.rotate90", "true", "--data.image_size", "[64, 96]"], "expected square images"),
        (["--evaluate.draws", "2"], "evaluate.draws: got 2, expected 0, or 3 or more"),
        (["--optim.warmup_steps", "1", "--optim.warmup_epochs", "1"], "expected at most one"),
        (["--train.compile", "true", "--model.backend", "minkowski"], "train.compile: got true wi"),
        (["--config"], "--config"),
        (["photos"], "photos"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused_in_one_sentence(extra: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_minimal(*extra)
    assert "\n" not in str(caught.value)


def test_a_missing_setting_is_named() -> None:
    with pytest.raises(ConfigError, match=r"data\.path: not given"):
        parse(PretrainConfig, ["--run.dir", "a", "--train.steps", "1"], prog="fcmae")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("data: {pth: x}", "unknown setting 'data.pth'. Did you mean data.path"),
        ("dat: {path: x}", "unknown setting 'dat'. Did you mean data?"),
        ("data: 3", "data: got 3, expected settings such as data.background"),
        ("- a", "holds no settings; expected sections"),
        ("", "holds no settings"),
        ("a: [", "is not valid YAML"),
        ("a: !!python/object/apply:os.system [echo]", "is not valid YAML"),
    ],
)
def test_wrong_files_are_refused_in_one_sentence(
    content: str, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        parse_minimal("--config", str(file))
    assert "\n" not in str(caught.value)


def test_a_missing_or_binary_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read \(No such file"):
        parse_minimal("--config", str(tmp_path / "absent.yaml"))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ConfigError, match="is not valid YAML"):
        parse_minimal("--config", str(tmp_path / "binary.yaml"))


def test_settings_of_nested_dicts_are_those_of_the_command_line() -> None:
    plain = {
        "run": {"dir": "runs/a"},
        "data": {"path": "photos", "image_size": [64, 96]},
        "train": {"steps": 3},
        "optim": {"base_lr": "1e-4"},
    }
    expected = parse_minimal("--data.image_size", "[64, 96]", "--optim.base_lr", "1e-4")
    assert from_plain(PretrainConfig, plain, where="base") == expected


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mask": {"ratoi": 0.5}}, "base: unknown setting 'mask.ratoi'. Did you mean mask.ratio"),
        ({"mask": 0.5}, "base: mask: got 0.5, expected settings such as mask.patch_size"),
        ({"mask": {"ratio": [0.5]}}, "mask.ratio: got .*, expected a number"),
        ({"mask": {"ratio": None}}, "mask.ratio: got null, expected a number"),
        ({"data": {}}, "data.path: not given"),
    ],
)
def test_mistakes_in_nested_dicts_are_told_with_their_origin(
    changed: dict[str, object], message: str
) -> None:
    plain = {"run": {"dir": "a"}, "data": {"path": "b"}, "train": {"steps": 3}, **changed}
    with pytest.raises(ConfigError, match=message):
        from_plain(PretrainConfig, plain, where="base")
