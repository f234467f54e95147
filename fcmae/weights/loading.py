"""Loads weights into a timm model: every entry fits, or nothing is loaded."""

from pathlib import Path

from timm.models.convnext import ConvNeXt
from torch import Tensor

from fcmae.errors import CheckpointError
from fcmae.runs.checkpoints import CheckpointStore
from fcmae.runs.folder import RunFolder
from fcmae.settings.sections import Inflate
from fcmae.weights.conversion import list_faults, timm_state_for
from fcmae.weights.files import load_state_dict_file, named_tensors
from fcmae.weights.public import find_public, is_public


def weights_file(source: Path | str) -> Path | None:
    """Return the weights file that a file or run folder stands for; None for its checkpoints.

    A name of published weights stands for the file in the hub's cache.

    Raises:
        CheckpointError: `source` does not exist, or is a folder without weights; as `find_public`.
    """
    if is_public(source):
        return find_public(str(source)).file
    path = Path(source)
    if not path.exists():
        raise CheckpointError(
            f"{path}: does not exist; name a weights file, the folder of a run, or published "
            "weights such as timm/convnextv2_tiny.fcmae."
        )
    if not path.is_dir():
        return path
    folder = RunFolder(path)
    names = ("encoder.safetensors", "classifier.safetensors", "segmenter.safetensors")
    for file in (*(folder.export / name for name in names), path / "model.safetensors"):
        if file.is_file():
            return file
    if CheckpointStore(folder.checkpoints).steps():
        return None
    raise CheckpointError(
        f"{path}: holds neither export/encoder.safetensors nor a checkpoint; name the folder of a "
        "run that has saved something, or a weights file."
    )


def load_encoder(
    model: ConvNeXt, source: Path | str, *, inflate: Inflate | None = None
) -> list[str]:
    """Load weights into `model`, every entry of the encoder or nothing; return what to tell.

    The file may leave out the final norm and the classifier, which pretraining does not have. A
    classifier for another number of classes is left out.

    Args:
        model: a timm ConvNeXt, changed in place.
        source: weights file, published weights, or run folder: its exported weights, else its
            newest checkpoint.
        inflate: what becomes of a stem for another number of channels: `none` keeps the model's
            own, `mean` gives every channel the mean of theirs, `tile` repeats theirs in turn (as
            `mean` where fewer are needed), scaled by their numbers. None refuses it, but for
            published weights it is `none`.

    Returns:
        Sentences about a classifier or a stem that was not taken as it is.

    Raises:
        CheckpointError: as `load_state_dict_file` and `weights_file`; missing, unexpected or
            mis-shaped entries, all listed.
    """
    where, state = _read(model, source)
    told = _drop_foreign_head(state, model)
    told += _fit_stem(state, model, "none" if inflate is None and is_public(source) else inflate)
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
        state = named_tensors(newest[1], Path(source))
    where = str(source if is_public(source) or file is None else file)
    try:
        return where, timm_state_for(state, model)
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from error


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


def _fit_stem(state: dict[str, Tensor], model: ConvNeXt, inflate: Inflate | None) -> list[str]:
    """Give the stem in `state` the channels of the model's; return what to tell."""
    own = model.state_dict()["stem.0.weight"]
    stem = state.get("stem.0.weight")
    if inflate is None or stem is None or stem.dim() != 4:
        return []
    theirs, ours = stem.shape[1], own.shape[1]
    if theirs == ours or stem.shape[2:] != own.shape[2:] or len(stem) != len(own):
        return []
    if inflate == "none":
        state["stem.0.weight"] = own.clone()
        return [
            f"its stem is for {theirs} channels and is drawn anew for {ours}; model.inflate mean "
            "or tile would make one of it."
        ]
    is_tiled = inflate == "tile" and ours > theirs
    made = stem if is_tiled else stem.mean(1, keepdim=True)
    repeated = made.repeat(1, -(-ours // made.shape[1]), 1, 1)[:, :ours]
    state["stem.0.weight"] = repeated * (theirs / ours)
    return [f"its stem is for {theirs} channels; {ours} are made of them ({inflate})."]


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
    faults = list_faults(missing, unexpected, misshaped)
    if not faults:
        return
    hint = "choose the model.name and model.stem_stride that the weights were made with"
    stem = state.get("stem.0.weight")
    if stem is not None and stem.dim() == 4 and stem.shape[1] != own["stem.0.weight"][1]:
        hint = f"the weights are for data.in_chans {stem.shape[1]}; model.inflate takes others"
    raise CheckpointError(f"{where}: does not fit the model ({faults}); {hint}.")
