"""Weights files, whoever wrote them: tensors by name in and out, without ever running code.

What the names mean is told in formats.py, and which model they fit in loading.py.
"""

import argparse
import json
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fcmae.errors import CheckpointError
from fcmae.runs.durable import save_torch

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")  # that can be written
# Where training scripts keep the weights inside a checkpoint; averaged ones win, as in timm.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
_PREFIXES = ("_orig_mod.", "module.")  # left by torch.compile and DistributedDataParallel
_COUNTERS = {"n_averaged"}  # beside the weights of torch's AveragedModel
_FALSE_FILE = "expected a .safetensors file, or a .pth, .pt or .bin file of tensors"
_SCALAR = np.float64(0).__reduce__()[0]  # how numpy pickles a number
# Containers without code of their own: the authors' checkpoints hold their command line, others
# numbers of numpy, such as the best accuracy.
_HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *{type(np.dtype(kind)) for kind in np.typecodes["AllInteger"] + np.typecodes["Float"] + "?"},
    (_SCALAR, "numpy._core.multiarray.scalar"),
    (_SCALAR, "numpy.core.multiarray.scalar"),  # numpy before 2
]


def load_state_dict_file(path: Path | str) -> dict[str, Tensor]:
    """Return the tensors of a weights file by name, on the CPU; pickled code is never run.

    The content decides what the file is. Wrappers such as {"model": ...}, prefixes that
    DistributedDataParallel and torch.compile leave, and numbers beside the weights are taken off.

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
    return named_tensors(content, path)


def read_metadata(path: Path | str) -> dict[str, Any]:
    """Return what a file that was written here says about itself, JSON values decoded.

    {} for files that say nothing, unreadable ones among them.
    """
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            texts = file.metadata() or {}
    except (OSError, safetensors.SafetensorError):
        texts = _metadata_of_pickle(Path(path))
    return {name: _decoded(text) for name, text in texts.items()}


def save_state_dict_file(
    state: Mapping[str, Tensor],
    partial: Path,
    metadata: Mapping[str, str],
    *,
    is_bare: bool = False,
) -> None:
    """Write tensors as the file's suffix says, which is one of SUFFIXES.

    A pickle has them below "model", where the authors' loaders, timm's and ours look, unless it
    `is_bare`: transformers takes the names as they are.
    """
    if partial.suffix == ".safetensors":
        save_file(dict(state), partial, metadata={"format": "pt", **metadata})
    elif is_bare:
        save_torch(dict(state), partial)
    else:
        save_torch({"model": dict(state), "metadata": dict(metadata)}, partial)


def named_tensors(content: Any, path: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by name, with wrappers and prefixes taken off.

    Numbers and texts beside the weights are left out.

    Args:
        content: as it was read.
        path: for messages.

    Raises:
        CheckpointError: no tensors by name, other things among them, NaN or infinite values.
    """
    inner = content
    while isinstance(inner, dict) and (
        wrapped := [name for name in _WRAPPERS if isinstance(inner.get(name), dict)]
    ):
        inner = inner[wrapped[0]]
    if not isinstance(inner, dict) or not inner:
        raise CheckpointError(f"{path}: holds no named tensors; {_FALSE_FILE}.")
    has_weights = any(isinstance(tensor, Tensor) for tensor in inner.values())
    state: dict[str, Tensor] = {}
    for name, tensor in inner.items():
        is_beside = isinstance(tensor, (bool, int, float, str, np.generic, type(None)))
        if name in _COUNTERS or (has_weights and is_beside):
            continue
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"{path}: entry {name!r} is a {type(tensor).__name__}, not a tensor; {_FALSE_FILE}."
            )
        while name.startswith(_PREFIXES):
            name = name.partition(".")[2]
        state[name] = tensor
    broken = not_finite(state)
    if broken:
        raise CheckpointError(
            f"{path}: NaN or infinite values in {', '.join(broken)}; use an earlier checkpoint."
        )
    return state


def not_finite(state: Mapping[str, Tensor]) -> list[str]:
    """Return the names of tensors with NaN or infinite values."""
    return [name for name, tensor in state.items() if not bool(torch.isfinite(tensor).all())]


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(
            f"{path}: not a complete safetensors file ({_first_line(error)}); copy it again."
        ) from error
    return tensors


def _read_pickle(path: Path) -> Any:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_HARMLESS):
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


def _metadata_of_pickle(path: Path) -> dict[str, str]:
    """Return the texts that `save_state_dict_file` puts beside the weights of a pickle."""
    if not path.is_file() or path.suffix not in SUFFIXES[1:]:
        return {}
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # whoever loads the weights says what is wrong with them
        return {}
    found = content.get("metadata") if isinstance(content, dict) else None
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        return {}
    return found


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
