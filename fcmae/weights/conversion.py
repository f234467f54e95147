"""Converts state dicts between layouts: strictly, by tables, through one common form."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fcmae.errors import CheckpointError, ConfigError
from fcmae.weights.formats import (
    FORMAT_NAMES,
    FORMATS,
    Entry,
    Format,
    accepted_shapes,
    restore,
    store,
    stored_shape,
)
from fcmae.weights.structure import Structure, read_structure

State = dict[str, Tensor]


class Weights(NamedTuple):
    """Weights in the common form: timm's names, plain shapes, the decoder under our names.

    Attributes:
        state: tensor by name.
        structure: of the model that they belong to.
    """

    state: State
    structure: Structure


def timm_state_for(state: Mapping[str, Tensor], model: nn.Module) -> State:
    """Return what a file of any layout holds of the encoder and classifier, as `model` names it.

    Names of timm are passed on without a check: timm has more ConvNeXts than the tables.

    Raises:
        CheckpointError: as fcmae.convert.convert_state_dict.
    """
    name = detect(state)
    if name == "timm":
        return dict(state)
    if name == "fcmae":  # timm's names below another, and the decoder
        return {n.removeprefix("encoder."): state[n] for n in state if n.startswith("encoder.")}
    found = read_weights(state, name)
    own = model.state_dict()  # a model of other widths than timm's may have either kind of MLP
    is_conv_mlp = any(n.endswith(".mlp.fc1.weight") and own[n].dim() == 4 for n in own)
    structure = dataclasses.replace(found.structure, conv_mlp=is_conv_mlp)
    converted = write_weights(Weights(found.state, structure), "timm")
    return {name: tensor for name, tensor in converted.items() if name in found.state}


def check_format(name: str, where: str) -> None:
    """Raise ConfigError that lists the formats unless `name` is one."""
    if name not in FORMAT_NAMES:
        raise ConfigError(f"{where}: got {name!r}, expected one of {', '.join(FORMAT_NAMES)}.")


def detect(state: Mapping[str, Any]) -> str:
    """Return the name of the layout that most entries of `state` belong to.

    Raises:
        CheckpointError: an entry is no tensor, or most entries belong to no layout.
    """
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"entry {name!r} is a {type(tensor).__name__}, expected tensors by name; pass "
                "what is inside, such as checkpoint['model']."
            )
    matches = {known: _num_known(known, state) for known in FORMATS}
    best = max(FORMATS, key=matches.__getitem__)
    if 2 * matches[best] <= len(state) or not state:
        names = ", ".join(list(state)[:5])
        raise CheckpointError(
            f"weights of no known layout (they begin {names}); expected a ConvNeXt in one of "
            f"{', '.join(FORMAT_NAMES)}."
        )
    return best.name


def read_weights(state: Mapping[str, Tensor], source: str) -> Weights:
    """Return `state` of the layout `source` in the common form.

    Raises:
        ConfigError: an unknown format.
        CheckpointError: missing, unexpected or mis-shaped entries, all of them listed.
    """
    check_format(source, "from")
    chosen = max(
        (known for known in FORMATS if known.name == source),
        key=lambda known: _num_known(known, state),
    )
    names = {name: chosen.common_name(name) for name in state}
    stored = {common: state[name] for name, common in names.items() if common is not None}
    structure = read_structure(stored, is_timm=source in ("timm", "fcmae"))
    entries = {common: _entry(chosen, common) for common in structure.shapes()}
    shapes = {common: shape for common, shape in structure.shapes().items() if common in stored}
    missing = [entry.name for common, entry in entries.items() if common not in stored]
    missing += _missing_parts(chosen, structure)
    unexpected = [name for name, common in names.items() if common not in entries]
    misshaped = [
        f"{entries[common].name} (got {list(stored[common].shape)}, expected "
        f"{list(stored_shape(entries[common].layout, shape, conv_mlp=structure.conv_mlp))})"
        for common, shape in shapes.items()
        if 0 not in shape  # of a stage whose width nothing tells
        and tuple(stored[common].shape) not in accepted_shapes(entries[common].layout, shape)
    ]
    if faults := list_faults(missing, unexpected, misshaped):
        raise CheckpointError(
            f"not a complete {source} layout ({faults}); use the file as it was saved, or name "
            "its layout if it is another one."
        )
    return Weights(
        {
            name: restore(stored[name], entries[name].layout, shape)
            for name, shape in shapes.items()
        },
        structure,
    )


def list_faults(missing: list[str], unexpected: list[str], misshaped: list[str]) -> str:
    """Return all entries that do not fit, counted by what is wrong; "" when none is."""
    kinds = {"missing": missing, "unexpected": unexpected, "of a wrong shape": misshaped}
    return "; ".join(f"{len(n)} {kind}: {', '.join(n)}" for kind, n in kinds.items() if n)


def write_weights(weights: Weights, to: str) -> State:
    """Return weights of the common form in the layout `to`.

    Raises:
        CheckpointError: a part that the layout needs is missing, or one has no place in it.
    """
    structure, state = weights.structure, dict(weights.state)
    chosen = _target(structure, to)
    if chosen.has_decoder and structure.decoder is None:
        raise CheckpointError(
            f"{to} is a whole FCMAE, and these weights have no decoder (missing: "
            f"{', '.join(_missing_parts(chosen, structure))}); convert a checkpoint of "
            "pretraining, or choose a layout of the encoder."
        )
    if structure.final_norm is None and chosen.needs_final_norm:
        norm = torch.ones_like(state["stem.1.weight"][:1]).repeat(structure.dims[-1])
        state |= {"head.norm.weight": norm, "head.norm.bias": torch.zeros_like(norm)}
    if to == "authors-dense" and structure.num_classes is None and _is_untrained_norm(state):
        # as in the released files of encoders
        state = {name: t for name, t in state.items() if not name.startswith("head.norm.")}
    homeless = [name for name in state if chosen.entry(name) is None and not _is_optional(name)]
    if homeless:
        raise CheckpointError(
            f"{to} has no place for {', '.join(homeless)}; choose another layout, such as timm."
        )
    converted = {}
    for name, tensor in state.items():
        entry = chosen.entry(name)
        if entry is not None:
            converted[entry.name] = store(tensor, entry.layout, conv_mlp=structure.conv_mlp)
    return converted


def left_out(weights: Weights, to: str) -> list[str]:
    """Return the names of trained weights that `to` has no place for."""
    chosen = _target(weights.structure, to)
    names = [name for name in weights.state if chosen.entry(name) is None]
    if _is_untrained_norm(weights.state):
        names = [name for name in names if not name.startswith("head.norm.")]
    return names


def _target(structure: Structure, to: str) -> Format:
    """Return the format of that name, with a place for the classifier if there is one."""
    candidates = [known for known in FORMATS if known.name == to]
    if len(candidates) == 1:
        return candidates[0]
    headless, version_2, version_1 = candidates
    if structure.num_classes is None:
        return headless
    return version_2 if structure.has_grn else version_1


def _missing_parts(known: Format, structure: Structure) -> list[str]:
    """Return what is missing when a whole part is, so that the structure does not tell of it."""
    parts = []
    if known.has_decoder and structure.decoder is None:
        parts += [n for n in known.entries if n.startswith("decoder.") and "{b}" not in n]
    if known.name == "huggingface" and structure.final_norm is None:
        parts += ["head.norm.weight", "head.norm.bias"]
    return [known.entries[name].name for name in parts]


def _num_known(known: Format, state: Mapping[str, Any]) -> int:
    return sum(known.common_name(name) is not None for name in state)


def _entry(known: Format, common_name: str) -> Entry:
    entry = known.entry(common_name)
    assert entry is not None, common_name
    return entry


def _is_optional(common_name: str) -> bool:
    """Whether a layout without a place for this part is still the same encoder."""
    return common_name.startswith(("decoder.", "head."))


def _is_untrained_norm(state: Mapping[str, Tensor]) -> bool:
    weight, bias = state.get("head.norm.weight"), state.get("head.norm.bias")
    if weight is None or bias is None:
        return False
    return bool((weight == 1).all()) and bool((bias == 0).all())
