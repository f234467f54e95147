"""Loads weights into a timm model: every entry fits, or nothing is loaded."""

from pathlib import Path

from timm.models.convnext import ConvNeXt
from torch import Tensor

from fcmae.errors import CheckpointError
from fcmae.runs.checkpoints import CheckpointStore
from fcmae.runs.folder import RunFolder
from fcmae.weights.conversion import list_faults, timm_state_for
from fcmae.weights.files import load_state_dict_file, named_tensors


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
        state = named_tensors(newest[1], Path(source))
    where = str(file or source)
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
        hint = f"the weights are for data.in_chans {stem.shape[1]}"
    raise CheckpointError(f"{where}: does not fit the model ({faults}); {hint}.")
