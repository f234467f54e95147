"""Writes weights in any format, and nothing that has not proved to be the same model."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from fcmae.errors import CheckpointError, ConfigError, writing
from fcmae.runs.durable import write_atomically
from fcmae.runs.folder import RunFolder
from fcmae.runs.terminal import progress_bar
from fcmae.weights.conversion import State, left_out, read_weights, write_weights
from fcmae.weights.encoder_info import EncoderInfo
from fcmae.weights.export_timm import export_timm, export_timm_folder
from fcmae.weights.files import SUFFIXES, load_state_dict_file, not_finite, save_state_dict_file
from fcmae.weights.formats import FILE_NAMES, ONNX, SMP, TIMM_FOLDER
from fcmae.weights.model_card import card_files
from fcmae.weights.proof import compare_models
from fcmae.weights.segmenter import segmenter_file
from fcmae.weights.sources import Source, licence_notices, open_source


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
        target: a file whose suffix says how to write it; for huggingface also, and for
            timm-folder only, a folder; None for a name of its own in the run's export folder, or
            beside the file.
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
    if segmenter_file(source) is not None:
        from fcmae.weights.export_segmenter import convert_segmenter

        with writing(f"{target or source}:"):
            return convert_segmenter(source, target, to)
    if to == SMP:
        raise ConfigError(
            f"--to: got {SMP!r} for {source}, which is no segmenter; smp.Unet and others take "
            f'the folder of --to {TIMM_FOLDER} by "tu-local-dir:FOLDER".'
        )
    bar = progress_bar(
        (), unit="step", total=2, title=to, is_brief=True, is_shown=to != ONNX
    )  # reading, then writing and proving; ONNX has more steps and a bar of its own
    with bar:
        found = open_source(source, from_format, origin)
        bar.update()
        path = Path(target) if target is not None else _default_target(Path(source), found, to)
        told = _written(source, target, found, path, to)
        bar.update()
    return told


def _written(
    source: Path | str, target: Path | str | None, found: Source, path: Path, to: str
) -> list[str]:
    told = licence_notices(source, found.metadata)
    told.append(f"{source}: {found.layout} layout, {len(found.state)} tensors.")
    if target is None and to == "timm" and path.is_file() and path.name.startswith("classifier"):
        told.append(f"{path}: is a file of timm already, as fine-tuning wrote it.")
    else:
        with writing(f"{path}:"):
            told += write(found, to, path)
    if to == TIMM_FOLDER:
        told.append(f'Load it with: timm.create_model("local-dir:{path}", pretrained=True)')
    elif to == "timm" and found.info is not None:
        told.append(f"Load it with: {found.info.timm_call(path)}")
    return told


def export(
    model: nn.Module, to: str, path: Path, info: EncoderInfo, run: RunFolder | None = None
) -> str:
    """Write a model and return what to tell the user; see `write`.

    Args:
        model: encoder or classifier of timm, or the whole FCMAE; on any device; not changed.
        to: one of FILE_NAMES.
        path: file or, for huggingface and timm-folder, folder.
        info: what goes into the metadata.
        run: what the model was trained in, for the model card.
    """
    check_target(path, to)
    source = dataclasses.replace(Source.of_model(model, info), run=run)
    return "\n".join(write(source, to, path, model))


def write(source: Source, to: str, path: Path, model: nn.Module | None = None) -> list[str]:
    """Write weights in a format after proving that the file is the same model.

    Args:
        source: weights and what is known of them.
        to: one of FILE_NAMES.
        path: file, or folder for huggingface and timm-folder; its folder is created; replaced as
            a whole.
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
    if to == TIMM_FOLDER and source.info is None:
        raise CheckpointError(
            f"{source.where}: does not say which model of timm its weights belong to, which "
            "config.json must name; choose another format, such as timm or huggingface."
        )
    if to not in (ONNX, TIMM_FOLDER) and not (to == "timm" and source.info is not None):
        return write_converted(
            source.state, source.layout, path, to, source.metadata, source.classes, source.info
        )
    metadata = {name: text for name, text in source.metadata.items() if name != "layout"}
    encoder = source.build_model() if model is None or has_decoder else model
    if to == ONNX:
        from fcmae.weights.export_onnx import export_onnx

        size = None if source.info is None else source.info.image_size
        told = [export_onnx(encoder, path, size, metadata)]
    elif to == TIMM_FOLDER:
        assert source.info is not None
        beside = card_files(source.info, metadata, source.run)
        told = [export_timm_folder(encoder, path, source.info, metadata, beside)]
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
    info: EncoderInfo | None = None,
) -> list[str]:
    """Write weights in another layout after proving that the file is the same model.

    Args:
        state: tensor by name, in the layout `source`; finite.
        source: format of `state`.
        target: file, or folder for huggingface; its parent is created.
        to: format to write.
        metadata: texts to keep with the weights.
        classes: names of the classifier's outputs, for huggingface.
        info: how images become the model's input, for huggingface; None where nobody says.

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
        proof = write_huggingface(weights, target, metadata, classes, prove, info)
    else:
        write_atomically(target, write)
    told = [
        f"{target}: written in the {to} layout; converted back it is the same bit for bit, and "
        f"{proof}"
    ]
    rest = left_out(weights, to)
    return [*told, _left_out(rest, to)] if rest else told


def is_folder(target: Path | str, to: str) -> bool:
    """Whether `target` stands for a folder of timm or Hugging Face rather than for a file."""
    return to in ("huggingface", SMP, TIMM_FOLDER) and Path(target).suffix not in SUFFIXES


def check_target(target: Path | str | None, to: str) -> None:
    """Raise ConfigError unless the format exists and the name says how to write it."""
    if to not in FILE_NAMES:
        raise ConfigError(f"--to: got {to!r}, expected one of {', '.join(FILE_NAMES)}.")
    if target is not None and to in (SMP, TIMM_FOLDER) and not is_folder(target, to):
        raise ConfigError(
            f"OUT: {str(target)!r} is the name of a file, and {to} is a folder; expected "
            f"a name without {Path(target).suffix}."
        )
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


def _left_out(names: Sequence[str], to: str) -> str:
    """Say which parts of a model the names of weights belong to."""
    parts = {
        "decoder.": "the decoder",
        "head.norm.": "the trained norm before the classifier",
        "head.fc.": "the classifier",
    }
    listed = [t for prefix, t in parts.items() if any(n.startswith(prefix) for n in names)]
    return f"Left out, because {to} has no place for it: {', '.join(listed)}."
