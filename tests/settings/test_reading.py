"""Settings: read strictly, refused in one sentence, written back unchanged."""

from __future__ import annotations

from pathlib import Path

import pytest

from fcmae.errors import ConfigError
from fcmae.settings.files import read_value, read_yaml
from fcmae.settings.pretrain import PretrainConfig
from fcmae.settings.reading import (
    forbidden_changes,
    from_plain,
    load,
    parse,
    take_options,
    to_plain,
    to_yaml,
)

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
        (["--train.batch_size", "0"], "train.batch_size: got 0, expected 1 or more"),
        (["--optim.base_lr", "-1"], "optim.base_lr: got -1.0, expected a finite number of 0"),
        (["--data.mean", "[0.5]"], "data.mean, data.std: got one of them, expected both"),
        (["--data.mean", "[0.5]", "--data.std", "[0.5]"], "data.mean: got .* expected 3 finite"),
        (["--data.crop_scale", "[0.5, 0.2]"], "data.crop_scale: got"),
        (["--data.value_range", "[5, 5]"], "data.value_range: got"),
        (["--data.rotate90", "true", "--data.image_size", "[64, 96]"], "expected square images"),
        (["--evaluate.draws", "2"], "evaluate.draws: got 2, expected 0, or 3 or more"),
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


def test_options_of_one_command_are_taken_out_of_anothers() -> None:
    words = "RUN --config a.yaml --slurm.nodes 2 --train.steps=4 --json --executor local"
    names = ("slurm.", "executor", "json")
    taken = take_options([*words.split(), "--slurm.hours=-3"], names, flags=("json",))
    own = [("slurm.nodes", "2"), ("json", ""), ("executor", "local"), ("slurm.hours", "-3")]
    assert taken == (own, ["RUN", "--config", "a.yaml", "--train.steps=4"])
    for short in (["--executor"], ["--executor", "--json"]):
        with pytest.raises(ConfigError, match=r"^command line: --executor has no value\.$"):
            take_options(short, ("executor",))


def write(file: Path, text: str) -> str:
    file.write_text(text)
    return str(file)


@pytest.mark.parametrize(
    ("file", "words", "kept", "told"),
    [
        (
            "train: {epochs: 800}",
            "--config FILE --train.steps 20",
            {"train.steps": 20, "train.epochs": None},
            "train.steps 20 of the command line replaces train.epochs 800 of the file FILE.",
        ),
        (
            "train: {steps: 9}",
            "--config FILE --train.epochs=0.5",
            {"train.steps": None, "train.epochs": 0.5},
            "train.epochs 0.5 of the command line replaces train.steps 9 of the file FILE.",
        ),
        (
            "train: {epochs: 2}",
            "--train.steps 20 --config FILE",
            {"train.steps": None, "train.epochs": 2},
            "train.epochs 2 of the file FILE replaces train.steps 20 of the command line.",
        ),
        (
            "train: {steps: 9}\noptim: {warmup_epochs: 1}",
            "--config FILE --optim.warmup_steps 3",
            {"optim.warmup_steps": 3, "optim.warmup_epochs": None},
            "optim.warmup_steps 3 of the command line replaces optim.warmup_epochs 1 of the "
            "file FILE.",
        ),
        ("train: {steps: 9}", "--config FILE --train.epochs null", {"train.steps": 9}, None),
        ("train: {steps: 9}", "--config FILE --train.steps 8", {"train.steps": 8}, None),
    ],
)
def test_a_later_source_replaces_what_an_earlier_one_says_in_another_way(
    file: str,
    words: str,
    kept: dict[str, object],
    told: str | None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write(tmp_path / "a.yaml", file)
    given = ["--run.dir", "a", "--data.path", "b", *words.replace("FILE", path).split()]
    config = to_plain(parse(PretrainConfig, given, prog="fcmae"))
    found = {name: config[name.split(".")[0]][name.split(".")[1]] for name in kept}
    assert found == kept
    expected = "" if told is None else f"fcmae: {told.replace('FILE', path)}\n"
    assert capsys.readouterr().err == expected


def test_the_first_of_several_processes_tells_what_was_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "a.yaml", "train: {epochs: 3}")
    monkeypatch.setenv("RANK", "1")
    assert parse_minimal("--config", path, "--train.steps", "3").train.steps == 3
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "train: {epochs: 3, steps: 4}",
            r"train\.time: got 4 and 3\.0, expected at most one of them",
        ),
        ("train: {steps: 5, time: 1h}", r"train\.time: got 5 and 1h, expected at most one"),
        ("optim: {warmup_steps: 1, warmup_epochs: 1}", "expected at most one"),
    ],
)
def test_a_contradiction_within_one_file_is_an_error(
    content: str, message: str, tmp_path: Path
) -> None:
    base = ["--run.dir", "a", "--data.path", "b", "--config", write(tmp_path / "a.yaml", content)]
    with pytest.raises(ConfigError, match=message):
        parse(PretrainConfig, base, prog="fcmae")


def test_of_one_command_line_the_last_word_wins_and_is_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = parse_minimal("--train.epochs=2", "--train.steps=7")
    assert (config.train.epochs, config.train.steps) == (None, 7)
    told = capsys.readouterr().err
    assert "train.steps 7 of the command line replaces train.epochs 2 of the command line." in told
    config = parse_minimal("--train.steps=7", "--train.epochs=2")
    assert (config.train.epochs, config.train.steps) == (2, None)
    config = parse_minimal("--optim.warmup_steps=3", "--optim.warmup_epochs=1")
    assert config.optim.warmup_epochs == 1
    assert config.optim.warmup_steps != 3


def test_a_list_grows_by_options_with_a_plus() -> None:
    config = parse_minimal("--data.path+", "more", "--data.path+=last")
    assert config.data.path == ["photos", "more", "last"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"train:\n steps: 3\n seed: 1\n steps: 4\n", "steps stands in line 2 and again in line 4"),
        (b"data: {path: x}\nmask: {}\ndata: {}\n", "data stands in line 1 and again in line 3"),
        ("train: {steps: 3}".encode("utf-16"), "is written in UTF-16, expected UTF-8; save it as"),
        ("train: {steps: 3}".encode("utf-16-be"), "is written in UTF-16, expected UTF-8"),
        ("train: {steps: 3}".encode("utf-32"), "is written in UTF-32, expected UTF-8"),
        (b"a: 1\nrun: {dir: caf\xe9}", r"is not UTF-8 \(byte 0xe9 in line 2; Latin-1, perhaps\)"),
    ],
)  # fmt: skip
def test_a_file_that_would_be_misread_is_refused(
    content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / "a.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        parse_minimal("--config", str(tmp_path / "a.yaml"))
    assert "\n" not in str(caught.value)


def test_a_file_with_a_byte_order_mark_and_a_date_for_a_name_is_read(tmp_path: Path) -> None:
    text = "run: {dir: 2024-01-01}\ndata: {path: caf\u00e9}\ntrain: {steps: 1}\n"
    (tmp_path / "a.yaml").write_bytes(text.encode("utf-8-sig"))
    config = load(PretrainConfig, tmp_path / "a.yaml")
    assert (config.run.dir, config.data.path) == ("2024-01-01", "caf\u00e9")


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
    (tmp_path / "binary.yaml").write_bytes(b"\x01\x02\x03")
    with pytest.raises(ConfigError, match="is not valid YAML"):
        parse_minimal("--config", str(tmp_path / "binary.yaml"))


@pytest.mark.parametrize(
    ("words", "read"),
    [
        ("--data.path a b c", ["a", "b", "c"]),
        ("--data.path=a b", ["a", "b"]),
        ("--data.path a --data.path+ b c", ["a", "b", "c"]),
        ("--data.path a --data.in_chans 1", "a"),
    ],
)
def test_what_a_shell_makes_of_a_pattern_is_several_values(words: str, read: object) -> None:
    given = ["--run.dir", "r", "--train.steps", "3", *words.split()]
    assert parse(PretrainConfig, given, prog="fcmae").data.path == read


def test_several_numbers_may_stand_behind_their_setting() -> None:
    words = "--data.image_size 64 96 --data.mean 0.1 0.2 0.3 --data.std 1 1 1"
    data = parse_minimal(*words.split()).data
    assert (data.image_size, data.mean) == ((64, 96), [0.1, 0.2, 0.3])


def test_a_setting_of_one_value_takes_no_second() -> None:
    with pytest.raises(ConfigError, match="command line: unexpected 'b'"):
        parse_minimal("--model.name", "a", "b")


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
        ({"mask": 0.5}, "base: mask: got 0.5, expected settings such as mask.min_valid"),
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


def test_names_of_files_are_spelt_as_the_command_line_of_this_process_has_them(
    tmp_path: Path,
) -> None:
    name = tmp_path / "run.yaml"
    name.write_text('data: {path: "\\udcc3\\udca9", exclude: ["\\udcff"]}', encoding="ascii")
    assert read_yaml(str(name), "--config")["data"] == {"path": "\u00e9", "exclude": ["\udcff"]}
    assert read_value("[\udcff, '\udcc3\udca9', 1]") == ["\udcff", "\udcc3\udca9", 1]
