"""Reads weights: any file of tensors, without ever running code from it, into a timm model.

Other layouts than timm's are converted by fcmae.weights.
"""

from __future__ import annotations

import argparse
import json
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from timm.models.convnext import ConvNeXt
from torch import Tensor, nn

from fcmae.errors import CheckpointError
from fcmae.runs.checkpoints import CheckpointStore
from fcmae.runs.folder import RunFolder
from fcmae.weights.conversion import timm_state_for

# Where training scripts keep the weights inside a checkpoint; averaged ones win, as in timm.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
_PREFIXES = ("_orig_mod.", "module.")  # left by torch.compile and DistributedDataParallel
_FALSE_FILE = "expected a .safetensors file, or a .pth, .pt or .bin file of tensors"


def load_state_dict_file(path: Path | str) -> dict[str, Tensor]:
    """Return the tensors of a weights file by name, on the CPU; pickled code is never run.

    The content decides what the file is. Wrappers such as {"model": ...} and prefixes that
    DistributedDataParallel and torch.compile leave are taken off.

    Raises:
        CheckpointError: missing, unreadable, empty, truncated, no weights, NaN or infinite
            values, or a pickle that needs code.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror}); name a weights file or a run folder."
        ) from error
    if size == 0:
        raise CheckpointError(f"{path}: the file is empty; {_FALSE_FILE}.")
    # A safetensors file begins with the length of its JSON header, 8 bytes, and the header.
    is_safetensors = start[8:9] == b"{" or path.suffix == ".safetensors"
    content = _read_safetensors(path) if is_safetensors else _read_pickle(path)
    return _named_tensors(content, path)


def read_metadata(path: Path | str) -> dict[str, Any]:
    """Return what a safetensors file says about itself, JSON values decoded; {} for other files."""
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            texts = file.metadata() or {}
    except (OSError, safetensors.SafetensorError):
        return {}
    return {name: _decoded(text) for name, text in texts.items()}


def weights_file(source: Path | str) -> Path | None:
    """Return the weights file that a file or run folder stands for; None for its checkpoints.

    Raises:
        CheckpointError: `source` does not exist, or is a folder without weights.
    """
    path = Path(source)
    if not path.exists():
        raise CheckpointError(
            f"{path}: does not exist; name a weights file or the folder of a run."
        )
    if not path.is_dir():
        return path
    folder = RunFolder(path)
    for name in ("encoder.safetensors", "classifier.safetensors"):
        if (folder.export / name).is_file():
            return folder.export / name
    if CheckpointStore(folder.checkpoints).steps():
        return None
    raise CheckpointError(
        f"{path}: holds neither export/encoder.safetensors nor a checkpoint; name the folder of a "
        "run that has saved something, or a weights file."
    )


def load_encoder(model: ConvNeXt, source: Path | str) -> list[str]:
    """Load weights into `model`, every entry of the encoder or nothing; return what to tell.

    The file may leave out the final norm and the classifier, which pretraining does not have. A
    classifier for another number of classes is left out.

    Args:
        model: a timm ConvNeXt, changed in place.
        source: weights file, or run folder: its exported weights, else its newest checkpoint.

    Returns:
        Sentences about a classifier that was not taken.

    Raises:
        CheckpointError: as `load_state_dict_file` and `weights_file`; missing, unexpected or
            mis-shaped entries, all listed.
    """
    where, state = _read(model, source)
    told = _drop_foreign_head(state, model)
    _check_entries(state, model, where, optional="head.")
    model.load_state_dict(state, strict=False)
    return [f"{where}: {sentence}" for sentence in told]


def load_classifier(model: ConvNeXt, source: Path | str) -> None:
    """Load weights into `model`, every entry, the classifier too; see `load_encoder`."""
    where, state = _read(model, source)
    _check_entries(state, model, where, optional=None)
    model.load_state_dict(state)


def _read(model: ConvNeXt, source: Path | str) -> tuple[str, dict[str, Tensor]]:
    """Return the file's name for messages, and its tensors under timm's names."""
    file = weights_file(source)
    if file is not None:
        state = load_state_dict_file(file)
    else:
        newest = CheckpointStore(RunFolder(source).checkpoints).load_newest()
        assert newest is not None  # weights_file has seen one
        state = _named_tensors(newest[1], Path(source))
    where = str(file or source)
    try:
        return where, to_timm(state, model)
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from error


def to_timm(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return the encoder's tensors under timm's names, from any layout that fcmae converts.

    Raises:
        CheckpointError: names of no known layout, or entries missing from one.
    """
    return timm_state_for(state, model)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(
            f"{path}: not a complete safetensors file ({_first_line(error)}); copy it again."
        ) from error
    return tensors


def _read_pickle(path: Path) -> Any:
    try:
        # The authors' checkpoints hold their command line: a container without code of its own.
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # of pickles that torch did not write
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        needed = re.search(r"GLOBAL ([\w.]+)", str(error))
        if needed:
            raise CheckpointError(
                f"{path}: refused, because reading it would run code ({needed[1]}); ask its author "
                "for a safetensors file."
            ) from error
        raise CheckpointError(f"{path}: not a weights file; {_FALSE_FILE}.") from error
    except Exception as error:  # damaged files make the readers of zip and pickle raise anything
        raise CheckpointError(
            f"{path}: damaged, truncated or not a weights file ({_first_line(error)}); "
            f"{_FALSE_FILE}."
        ) from error


def _named_tensors(content: Any, path: Path) -> dict[str, Tensor]:
    """Take wrappers and prefixes off."""
    for name in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
            break
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{path}: holds no named tensors; {_FALSE_FILE}.")
    state: dict[str, Tensor] = {}
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"{path}: entry {name!r} is a {type(tensor).__name__}, not a tensor; {_FALSE_FILE}."
            )
        for prefix in _PREFIXES:
            name = name.removeprefix(prefix)
        state[name] = tensor
    broken = [name for name, tensor in state.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise CheckpointError(
            f"{path}: NaN or infinite values in {', '.join(broken)}; use an earlier checkpoint."
        )
    return state


def _drop_foreign_head(state: dict[str, Tensor], model: ConvNeXt) -> list[str]:
    """Take a classifier out of `state` that `model` has no place for; return what to tell."""
    own = model.state_dict()
    weight = state.get("head.fc.weight")
    if weight is None or ("head.fc.weight" in own and own["head.fc.weight"].shape == weight.shape):
        return []
    for name in ("head.fc.weight", "head.fc.bias"):
        state.pop(name, None)
    wanted = f"{model.num_classes} are needed" if model.num_classes else "none is needed"
    return [f"its classifier of {len(weight)} classes is left out: {wanted}."]


def _check_entries(
    state: dict[str, Tensor], model: ConvNeXt, where: str, *, optional: str | None
) -> None:
    """Raise CheckpointError, listing all, unless the entries are the model's.

    Names that begin with `optional` may be missing.
    """
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    missing = [
        name for name in own if name not in state and not (optional and name.startswith(optional))
    ]
    unexpected = [name for name in state if name not in own]
    misshaped = [
        f"{name} ({list(tensor.shape)} there, {list(own[name])} here)"
        for name, tensor in state.items()
        if name in own and tuple(tensor.shape) != own[name]
    ]
    found = [
        f"{len(names)} {kind}: {', '.join(names)}"
        for kind, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", misshaped),
        )
        if names
    ]
    if not found:
        return
    hint = "choose the model.name and model.stem_stride that the weights were made with"
    stem = state.get("stem.0.weight")
    if stem is not None and stem.dim() == 4 and stem.shape[1] != own["stem.0.weight"][1]:
        hint = f"the weights are for data.in_chans {stem.shape[1]}"
    raise CheckpointError(f"{where}: does not fit the model ({'; '.join(found)}); {hint}.")


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
