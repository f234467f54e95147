"""Converts weights files, and writes nothing that has not proved to be the same model."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file

from fcmae.errors import CheckpointError, ConfigError
from fcmae.runs.checkpoints import CheckpointStore
from fcmae.runs.durable import write_atomically
from fcmae.runs.folder import RunFolder
from fcmae.weights.conversion import (
    State,
    check_format,
    detect,
    left_out,
    read_weights,
    write_weights,
)
from fcmae.weights.proof import compare_models
from fcmae.weights.reading import load_state_dict_file, read_metadata

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
# Licence notes of weights that others released, by the name that the user gives as origin.
ORIGINS = {
    "facebookresearch/convnext-v2": "weights released with ConvNeXt V2 "
    "(facebookresearch/ConvNeXt-V2), licence CC-BY-NC 4.0: no commercial use",
}


class Source(NamedTuple):
    """What was read: weights, and what is known beside them.

    Attributes:
        state: tensor by name.
        metadata: texts, as safetensors holds them.
        classes: names of the classifier's outputs, if they are known.
    """

    state: State
    metadata: dict[str, str]
    classes: list[str] | None


def convert_file(
    source: Path | str,
    target: Path | str,
    *,
    to: str,
    from_format: str = "auto",
    origin: str = "",
) -> list[str]:
    """Convert a weights file, a Hugging Face folder or a run folder; return what to tell the user.

    Args:
        source: file or folder.
        target: a .safetensors, .pth, .pt or .bin file; for huggingface also a folder.
        to: format, as in convert_state_dict.
        from_format: format, or `auto`.
        origin: where the weights come from; a known origin adds its licence note. Both travel in
            the metadata.

    Raises:
        ConfigError: an unknown format, or a file name that cannot be written.
        CheckpointError: unreadable or incomplete weights, or a result that is not the same model.
        BackendUnavailableError: transformers is needed and not installed.
    """
    check_format(to, "--to")
    if from_format != "auto":
        check_format(from_format, "--from")
    _check_target(Path(target), to)
    found = read_source(Path(source))
    try:
        format_name = detect(found.state)
        if from_format not in ("auto", format_name):
            raise CheckpointError(
                f"has the names of the {format_name} layout, not of --from {from_format}; leave "
                "--from out."
            )
        read_weights(found.state, format_name)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from error
    metadata = found.metadata | _origin(origin, found.metadata)
    told = write_converted(
        found.state, format_name, Path(target), to, metadata, classes=found.classes
    )
    return [f"{source}: {format_name} layout, {len(found.state)} tensors.", *told]


def write_converted(
    state: State,
    source: str,
    target: Path,
    to: str,
    metadata: Mapping[str, str],
    classes: Sequence[str] | None = None,
) -> list[str]:
    """Write weights in another layout after proving that the file is the same model.

    Args:
        state: tensor by name, in the layout `source`.
        source: format of `state`.
        target: file, or folder for huggingface; its parent is created.
        to: format to write.
        metadata: texts to keep with the weights.
        classes: names of the classifier's outputs, for huggingface.

    Returns:
        Sentences for the user: what was written, the proof, and what was left out.

    Raises:
        ConfigError: the file cannot be written there.
        CheckpointError: a part is missing, or the result is not the same model; nothing is
            written then.
        BackendUnavailableError: transformers is needed and not installed.
    """
    weights = read_weights(state, source)
    metadata = {**metadata, "layout": to}
    proof = ""

    def write(partial: Path) -> None:
        nonlocal proof
        _save(write_weights(weights, to), partial, to, metadata)
        written = load_state_dict_file(partial)
        back = read_weights(written, to).state
        changed = [n for n, t in weights.state.items() if n in back and not torch.equal(t, back[n])]
        if changed:
            raise CheckpointError(
                f"convert: {', '.join(changed)} differ after converting back; nothing was written."
            )
        proof = compare_models(state, source, written, to)

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if is_folder(target, to):
            from fcmae.weights.export_huggingface import write_huggingface

            prove = functools.partial(compare_models, state, source, to=to)
            proof = write_huggingface(weights, target, metadata, classes, prove)
        else:
            write_atomically(target, write)
    except OSError as error:
        raise ConfigError(
            f"{target}: cannot be written ({error.strerror or error}); name another file."
        ) from error
    told = [
        f"{target}: written in the {to} layout; converted back it is the same bit for bit, and "
        f"{proof}"
    ]
    rest = left_out(weights, to)
    if rest:
        told.append(f"Left out, because {to} has no place for it: {_summary(rest)}.")
    return told


def read_source(path: Path) -> Source:
    """Read a weights file, a Hugging Face folder, or the newest checkpoint of a run folder.

    Raises:
        CheckpointError: it cannot be read as weights.
    """
    if not path.is_dir():
        return Source(load_state_dict_file(path), _texts(read_metadata(path)), None)
    for name in ("model.safetensors", "pytorch_model.bin"):
        file = path / name
        if file.is_file():
            metadata = _texts(read_metadata(file))
            return Source(load_state_dict_file(file), metadata, _class_names(path))
    newest = CheckpointStore(RunFolder(path).checkpoints).load_newest()
    if newest is None:
        raise CheckpointError(
            f"{path}: holds neither model.safetensors nor a checkpoint; name a weights file, a "
            "Hugging Face folder or the folder of a run that has saved something."
        )
    return Source(dict(newest[1]["model"]), {}, None)


def is_folder(target: Path, to: str) -> bool:
    """Whether `target` stands for a Hugging Face folder rather than for a file."""
    return to == "huggingface" and target.suffix not in SUFFIXES


def _check_target(target: Path, to: str) -> None:
    if target.suffix not in SUFFIXES and not is_folder(target, to):
        raise ConfigError(
            f"OUT: {str(target)!r} does not say how to write it; expected a name that ends in "
            f"{', '.join(SUFFIXES)}."
        )


def _save(state: State, partial: Path, to: str, metadata: Mapping[str, str]) -> None:
    if partial.suffix == ".safetensors":
        save_file(state, partial, metadata={"format": "pt", **metadata})
    elif to == "huggingface":  # transformers takes the names as they are
        torch.save(state, partial)
    else:  # "model" is where the authors' loaders, timm's and ours look
        torch.save({"model": state, "metadata": dict(metadata)}, partial)


def _texts(metadata: Mapping[str, Any]) -> dict[str, str]:
    return {n: v if isinstance(v, str) else json.dumps(v) for n, v in metadata.items()}


def _class_names(folder: Path) -> list[str] | None:
    """Return the classes that a Hugging Face folder names, in order of the outputs."""
    try:
        labels = json.loads((folder / "config.json").read_text(encoding="utf-8"))["id2label"]
        return [str(labels[str(index)]) for index in range(len(labels))]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _origin(origin: str, metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the metadata's new origin: what it said already, and what the user says."""
    note = ORIGINS.get(origin.strip().lower().removeprefix("https://github.com/"), origin)
    known = metadata.get("origin", "")
    told = [text for text in (known, note) if text]
    return {"origin": "; ".join(dict.fromkeys(told))} if told else {}


def _summary(names: Sequence[str]) -> str:
    """Say which parts of a model the names belong to."""
    parts = {
        "decoder.": "the decoder",
        "head.norm.": "the trained norm before the classifier",
        "head.fc.": "the classifier",
    }
    return ", ".join(t for prefix, t in parts.items() if any(n.startswith(prefix) for n in names))
