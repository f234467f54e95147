"""YAML as settings are written in it: read strictly, and refused in one sentence."""

import codecs
import difflib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from fcmae.errors import ConfigError

Plain = dict[str, Any]
MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",  # begins as UTF-16 does
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


PACKAGE = Path(__file__).resolve().parents[1]
# A wheel brings the recipes inside the package; in a repository they lie beside it.
_INSIDE = PACKAGE / "configs"
RECIPES = _INSIDE if _INSIDE.is_dir() else PACKAGE.parent / "configs"
# Bytes of a name that is not in the locale's encoding, as Python writes them, are no YAML.
_AS_LETTERS = {0xDC00 + byte: 0xF700 + byte for byte in range(0x80, 0x100)}
_AS_BYTES = {letter: byte for byte, letter in _AS_LETTERS.items()}


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML would keep the last; a date is a text."""

    yaml_implicit_resolvers = {  # noqa: RUF012  # PyYAML's own attribute
        first: [(tag, form) for tag, form in forms if not tag.endswith(":timestamp")]
        for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                line = key.start_mark.line + 1
                if key.value in lines:
                    raise yaml.YAMLError(
                        f"{key.value} stands in line {lines[key.value]} and again in line {line}, "
                        "keep one of them"
                    )
                lines[key.value] = line
        return node


def shipped() -> list[str]:
    """Return the names of the recipes that come with the package, such as `pretrain/atto`."""
    return sorted(
        file.relative_to(RECIPES).with_suffix("").as_posix() for file in RECIPES.glob("**/*.yaml")
    )


def find_config(path: str, where: str = "--config") -> Path:
    """Return the file that a word means: itself, or the shipped recipe of that name.

    A file of one's own wins. `pretrain/atto` or, where only one folder has it, `small_data`.

    Raises:
        ConfigError: told with `where`: recipes of several folders have the name.
    """
    file = Path(path)
    if file.is_absolute() or file.suffix or (file.exists() and not file.is_dir()):
        return file
    names = shipped()
    meant = [name for name in names if path in (name, name.rpartition("/")[2])]
    if path in meant or len(meant) == 1:
        return RECIPES / f"{path if path in meant else meant[0]}.yaml"
    if meant:
        raise ConfigError(
            f"{where}: {path!r} is the name of several recipes; expected {' or '.join(meant)}."
        )
    return file


def read_yaml(path: str, where: str) -> Plain:
    """Return what a YAML file of settings holds; `path` may be the name of a shipped recipe.

    Raises:
        ConfigError: told with `where`, the option that names the file: it cannot be read, is in
            another encoding than UTF-8, is no YAML, has a key twice, or holds no settings.
    """
    try:
        content = yaml.load(_decode(find_config(path, where).read_bytes()), _Loader)  # a safe one
        content = spelt_here(content)
    except OSError as error:
        near = difflib.get_close_matches(Path(path).stem, shipped(), n=2)
        raise ConfigError(
            f"{where}: {path!r} cannot be read ({error.strerror}); expected a YAML file of "
            f"settings, or a recipe's name such as {' or '.join(near) or 'pretrain/atto'}."
        ) from error
    except UnicodeError as error:
        raise ConfigError(f"{where}: {path!r} {error}; save it as UTF-8.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: {path!r} is not valid YAML: {_line(error)}.") from error
    if not isinstance(content, dict):
        raise ConfigError(
            f"{where}: {path!r} holds no settings; expected sections such as data: or base:."
        )
    return content


def read_value(text: str, where: str = "command line") -> Any:
    """Return the value that a text of YAML spells; raises ConfigError, told with `where`."""
    hidden = text.translate(_AS_LETTERS)
    try:
        value = yaml.load(hidden, _Loader)
        return (
            value
            if hidden == text
            else _with_texts(value, lambda found: found.translate(_AS_BYTES))
        )
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: {text!r} is no value: {_line(error)}.") from error


def spelt_here(value: Any) -> Any:
    """Return plain values with every text as this process's command line would have it.

    Names of files are bytes, of which Python makes texts by the locale: a run's settings may have
    been written under another one.
    """
    return _with_texts(value, lambda text: os.fsdecode(text.encode("utf-8", "surrogateescape")))


def spelt_in_utf8(value: Any) -> Any:
    """Return plain values with every text as a file of settings should have it."""
    return _with_texts(
        value,
        lambda text: text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape"),
    )


def _with_texts(
    value: Any, change: Callable[[str], str], changed: dict[int, Any] | None = None
) -> Any:
    """Return `value` with changed texts; parts that stand in many places by anchors stay one."""
    changed = {} if changed is None else changed
    if isinstance(value, str):
        return value if value.isascii() else change(value)
    if not isinstance(value, (list, dict)):
        return value
    if id(value) not in changed:
        changed[id(value)] = (
            [_with_texts(item, change, changed) for item in value]
            if isinstance(value, list)
            else {
                _with_texts(key, change, changed): _with_texts(item, change, changed)
                for key, item in value.items()
            }
        )
    return changed[id(value)]


def _decode(raw: bytes) -> str:
    name = next((MARKS[mark] for mark in MARKS if raw.startswith(mark)), None)
    if name is None and b"\0" in raw[:2]:
        name = "UTF-16"
    if name is not None:
        raise UnicodeError(f"is written in {name}, expected UTF-8")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UnicodeError(
            f"is not UTF-8 (byte 0x{raw[error.start]:02x} in line {line}; Latin-1, perhaps)"
        ) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
