"""Writes weights in any format, and nothing that has not proved to be the same model."""

import copy
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from fcmae.errors import CheckpointError, ConfigError
from fcmae.runs.durable import write_atomically
from fcmae.runs.folder import RunFolder
from fcmae.weights.conversion import State, left_out, read_weights, write_weights
from fcmae.weights.encoder_info import EncoderInfo
from fcmae.weights.files import SUFFIXES, load_state_dict_file, not_finite, save_state_dict_file
from fcmae.weights.formats import FILE_NAMES, ONNX
from fcmae.weights.proof import compare_models, largest_difference
from fcmae.weights.sources import Source, open_source

COMPARED_IMAGES = 2


def convert_file(
    source: Path | str,
    target: Path | str | None = None,
    *,
    to: str,
    from_format: str = "auto",
    origin: str = "",
) -> list[str]:
    """Write what a user names in another format; return what to tell the user.

    Args:
        source: weights file, Hugging Face folder or run folder.
        target: a file whose suffix says how to write it; for huggingface also a folder; None for
            a name of its own in the run's export folder, or beside the file.
        to: one of FILE_NAMES.
        from_format: format, or `auto`.
        origin: where the weights come from; a known origin adds its licence note. Both travel in
            the metadata.

    Raises:
        ConfigError: an unknown format, or a file that cannot be written.
        CheckpointError: unreadable or incomplete weights, or a result that is not the same model.
        BackendUnavailableError: transformers or onnx is needed and not installed.
    """
    check_target(target, to)
    found = open_source(source, from_format, origin)
    path = Path(target) if target is not None else _default_target(Path(source), found, to)
    told = [f"{source}: {found.layout} layout, {len(found.state)} tensors."]
    if target is None and to == "timm" and path.is_file() and path.name.startswith("classifier"):
        told.append(f"{path}: is a file of timm already, as fine-tuning wrote it.")
    else:
        try:
            told += write(found, to, path)
        except OSError as error:
            raise _unwritable(path, error) from error
    if to == "timm" and found.info is not None:
        told.append(f"Load it with: {found.info.timm_call(path)}")
    return told


def export(model: nn.Module, to: str, path: Path, info: EncoderInfo) -> str:
    """Write a model and return what to tell the user; see `write`.

    Args:
        model: encoder or classifier of timm, or the whole FCMAE; on any device; not changed.
        to: one of FILE_NAMES.
        path: file or, for huggingface, folder.
        info: what goes into the metadata.
    """
    check_target(path, to)
    return "\n".join(write(Source.of_model(model, info), to, path, model))


def write(source: Source, to: str, path: Path, model: nn.Module | None = None) -> list[str]:
    """Write weights in a format after proving that the file is the same model.

    Args:
        source: weights and what is known of them.
        to: one of FILE_NAMES.
        path: file, or folder for huggingface; its folder is created; replaced as a whole.
        model: of the weights, where it exists already.

    Returns:
        Sentences for the user: what was written, the proof, and what was left out.

    Raises:
        OSError: the file cannot be written there.
        CheckpointError: a part is missing, or what was written is not the same model; nothing is
            written then.
        BackendUnavailableError: transformers or onnx is needed and not installed.
    """
    broken = not_finite(source.state)
    if broken:
        raise CheckpointError(
            f"export: NaN or infinite values in {', '.join(broken)}; nothing was written. Look at "
            "the run's loss, or use an earlier checkpoint."
        )
    has_decoder = source.layout in ("fcmae", "authors-fcmae")
    if to != ONNX and not (to == "timm" and source.info is not None):
        return write_converted(
            source.state, source.layout, path, to, source.metadata, source.classes
        )
    metadata = {name: text for name, text in source.metadata.items() if name != "layout"}
    encoder = source.build_model() if model is None or has_decoder else model
    if to == ONNX:
        from fcmae.weights.export_onnx import export_onnx

        size = None if source.info is None else source.info.image_size
        told = [export_onnx(encoder, path, size, metadata)]
    else:
        assert source.info is not None
        told = [export_timm(encoder, path, source.info, metadata)]
    return [*told, _left_out(["decoder."], to)] if has_decoder else told


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
        state: tensor by name, in the layout `source`; finite.
        source: format of `state`.
        target: file, or folder for huggingface; its parent is created.
        to: format to write.
        metadata: texts to keep with the weights.
        classes: names of the classifier's outputs, for huggingface.

    Returns:
        Sentences for the user: what was written, the proof, and what was left out.

    Raises:
        OSError: the file cannot be written there.
        CheckpointError: a part is missing, or the result is not the same model; nothing is
            written then.
        BackendUnavailableError: transformers is needed and not installed.
    """
    weights = read_weights(state, source)
    metadata = {**metadata, "layout": to}
    proof = ""

    def write(partial: Path) -> None:
        nonlocal proof
        converted = write_weights(weights, to)
        save_state_dict_file(converted, partial, metadata, is_bare=to == "huggingface")
        written = load_state_dict_file(partial)
        back = read_weights(written, to).state
        changed = [n for n, t in weights.state.items() if n in back and not torch.equal(t, back[n])]
        if changed:
            raise CheckpointError(
                f"convert: {', '.join(changed)} differ after converting back; nothing was written."
            )
        proof = compare_models(state, source, written, to)

    target.parent.mkdir(parents=True, exist_ok=True)
    if is_folder(target, to):
        from fcmae.weights.export_huggingface import write_huggingface

        prove = functools.partial(compare_models, state, source, to=to)
        proof = write_huggingface(weights, target, metadata, classes, prove)
    else:
        write_atomically(target, write)
    told = [
        f"{target}: written in the {to} layout; converted back it is the same bit for bit, and "
        f"{proof}"
    ]
    rest = left_out(weights, to)
    return [*told, _left_out(rest, to)] if rest else told


def export_timm(
    encoder: nn.Module, path: Path, info: EncoderInfo, metadata: Mapping[str, str] | None = None
) -> str:
    """Write the encoder with metadata, and return a sentence that says so.

    The file holds float32 weights under timm's names, with `head.norm`, which pretraining leaves
    at its start. Before it takes its place it is loaded into a fresh timm model, strictly, and
    both are compared on random images.

    Args:
        encoder: a dense timm ConvNeXt, with a classifier or without, on any device; not changed.
        path: the file; its folder is created; replaced as a whole.
        info: how timm builds it.
        metadata: texts to keep with the weights; by default those of `info`.

    Raises:
        CheckpointError: `info` describes another model, or the reloaded one differs; nothing is
            written then.
    """
    original = copy.deepcopy(encoder).cpu().float().eval()
    weights = {name: value.contiguous() for name, value in original.state_dict().items()}
    largest = 0.0

    def write(partial: Path) -> None:
        nonlocal largest
        save_state_dict_file(weights, partial, metadata or info.to_metadata())
        reloaded = info.create_model(getattr(original, "num_classes", 0))
        try:
            reloaded.load_state_dict(load_state_dict_file(partial), strict=True)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:500]
            raise CheckpointError(
                f"export: the encoder is no {info.model_name} with {info.in_chans} channels and "
                f"a stem stride of {info.stem_stride} ({reason}); nothing was written."
            ) from error
        rng = torch.Generator().manual_seed(0)
        images = torch.randn(COMPARED_IMAGES, info.in_chans, *info.image_size, generator=rng)
        expected, found = (_outputs(model, images) for model in (original, reloaded.eval()))
        largest = largest_difference(
            expected, found, f"the reloaded {info.model_name}", "the encoder"
        )

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, write)
    return (
        f"{path}: written and loaded back into a fresh timm model; the largest difference of "
        f"features on {COMPARED_IMAGES} random images is {largest:.1e} of the largest value."
    )


@torch.no_grad()
def _outputs(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    features = model.forward_features(images)  # type: ignore[operator]
    return {"features": features, "pooled": model.forward_head(features)}  # type: ignore[operator]


def is_folder(target: Path | str, to: str) -> bool:
    """Whether `target` stands for a Hugging Face folder rather than for a file."""
    return to == "huggingface" and Path(target).suffix not in SUFFIXES


def check_target(target: Path | str | None, to: str) -> None:
    """Raise ConfigError unless the format exists and the name says how to write it."""
    if to not in FILE_NAMES:
        raise ConfigError(f"--to: got {to!r}, expected one of {', '.join(FILE_NAMES)}.")
    suffixes = (".onnx",) if to == ONNX else SUFFIXES
    if target is not None and Path(target).suffix not in suffixes and not is_folder(target, to):
        raise ConfigError(
            f"OUT: {str(target)!r} does not say how to write it; expected a name that ends in "
            f"{', '.join(suffixes)}."
        )


def _default_target(source: Path, found: Source, to: str) -> Path:
    if not source.is_dir():
        return source.with_name(f"{source.stem}{FILE_NAMES[to]}")
    kind = "encoder" if found.classes is None else "classifier"
    return RunFolder(source).export / f"{kind}{FILE_NAMES[to]}"


def _unwritable(path: Path, error: OSError) -> ConfigError:
    reason = error.strerror or str(error)
    return ConfigError(f"{path}: cannot be written ({reason}); name another file.")


def _left_out(names: Sequence[str], to: str) -> str:
    """Say which parts of a model the names of weights belong to."""
    parts = {
        "decoder.": "the decoder",
        "head.norm.": "the trained norm before the classifier",
        "head.fc.": "the classifier",
    }
    listed = [t for prefix, t in parts.items() if any(n.startswith(prefix) for n in names)]
    return f"Left out, because {to} has no place for it: {', '.join(listed)}."
