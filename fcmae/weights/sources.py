"""What a user names - a run, a weights file, a Hugging Face folder - as weights and their story."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm.models.convnext import ConvNeXt
from torch import nn

from fcmae.data import default_mean_std
from fcmae.errors import CheckpointError, ConfigError
from fcmae.model.autoencoder import FCMAE
from fcmae.runs.checkpoints import CheckpointStore
from fcmae.runs.folder import RunFolder
from fcmae.runs.loading import is_pretraining_run, load_run
from fcmae.settings.ranges import check_range
from fcmae.settings.sections import Channels, ImageSize
from fcmae.weights.conversion import (
    State,
    check_format,
    detect,
    read_weights,
    timm_state_for,
    write_weights,
)
from fcmae.weights.encoder_info import EncoderInfo, facts_of_run
from fcmae.weights.files import load_state_dict_file, read_metadata
from fcmae.weights.loading import load_encoder, weights_file
from fcmae.weights.public import PublicWeights, find_public, is_non_commercial, is_public

# Licence notes of weights that others released, by the name that the user gives as origin.
ORIGINS = {
    "facebookresearch/convnext-v2": "weights released with ConvNeXt V2 "
    "(facebookresearch/ConvNeXt-V2), licence CC-BY-NC 4.0: no commercial use",
}


@dataclass(frozen=True)
class Source:
    """Weights as they were found, and what is known beside them.

    Attributes:
        where: for messages.
        state: tensor by name, on the CPU.
        layout: format of `state`.
        metadata: texts that travel with the weights, as safetensors holds them.
        info: how the model is built and fed; None where nobody says.
        classes: names of the classifier's outputs, if they are known.
        run: the folder that the weights were trained in, where they were found in one.
    """

    where: str
    state: State
    layout: str
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)
    info: EncoderInfo | None = None
    classes: tuple[str, ...] | None = None
    run: RunFolder | None = None

    @classmethod
    def of_model(cls, model: nn.Module, info: EncoderInfo) -> Source:
        """Return the weights of an encoder or classifier of timm, or of a whole FCMAE."""
        state = {name: value.detach().cpu().float() for name, value in model.state_dict().items()}
        layout = "fcmae" if isinstance(model, FCMAE) else "timm"
        return cls(info.model_name, state, layout, info.to_metadata(), info, info.classes)

    def build_model(self) -> ConvNeXt:
        """Return the encoder, or the classifier, as a timm model in evaluation mode.

        Raises:
            CheckpointError: as `read_weights`; weights of another model than `info` says.
        """
        if self.info is None or self.layout not in ("timm", "fcmae"):
            weights = read_weights(self.state, self.layout)
            model = weights.structure.build()
        else:  # timm has more ConvNeXts than the tables of layouts
            model = self.info.create_model(len(self.info.classes or ()))
        state = timm_state_for(self.state, model)
        try:
            model.load_state_dict({**_untrained_norm(model), **state})
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:500]
            raise CheckpointError(
                f"{self.where}: the weights are not of the model that they are said to be "
                f"({reason})."
            ) from error
        return model.float().eval()


def open_source(path: Path | str, layout: str = "auto", origin: str = "") -> Source:
    """Return the weights that a user names.

    Args:
        path: weights file, published weights by name, Hugging Face folder, or folder of a run:
            what its fine-tuning has exported, else its newest checkpoint.
        layout: format, or `auto` to tell by names and shapes.
        origin: where weights or images come from; a known origin adds its licence note.

    Raises:
        ConfigError: an unknown format; a run whose settings cannot be read.
        CheckpointError: unreadable or incomplete weights, or those of another layout.
    """
    if layout != "auto":
        check_format(layout, "--from")
    found = _open(Path(path))
    try:
        told = found.layout or detect(found.state)
        if layout not in ("auto", told):
            raise CheckpointError(
                f"has the names of the {told} layout, not of --from {layout}; leave --from out."
            )
        if found.info is None:
            read_weights(found.state, told)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    note = ORIGINS.get(origin.strip().lower().removeprefix("https://github.com/"), origin)
    notes = [text for text in (found.metadata.get("origin", ""), note) if text]
    joined = "; ".join(dict.fromkeys(notes))
    metadata = {**found.metadata, **({"origin": joined} if joined else {})}
    info = found.info
    if found.classes is not None:
        metadata["classes"] = json.dumps(found.classes)
    if info is not None:
        info = dataclasses.replace(info, origin=joined, classes=found.classes)
    return dataclasses.replace(found, layout=told, metadata=metadata, info=info)


def _open(path: Path) -> Source:
    """Read the weights; the layout is "" where the names must tell it."""
    where = str(path)
    if is_public(path):
        return _open_public(find_public(where))
    if not path.is_dir():
        return _open_file(path, where)
    folder = RunFolder(path)
    classifier = folder.export / "classifier.safetensors"
    if classifier.is_file():
        return dataclasses.replace(_open_file(classifier, where), run=folder)
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (path / name).is_file():
            found = _open_file(path / name, where)
            return dataclasses.replace(found, classes=_class_names(path) or found.classes)
    if is_pretraining_run(path):
        config, model, step = load_run(path)
        return dataclasses.replace(
            Source.of_model(model, EncoderInfo.of_run(config, model, step, folder.read_origin())),
            where=where,
            run=folder,
        )
    newest = CheckpointStore(folder.checkpoints).load_newest()
    if newest is None:
        raise CheckpointError(
            f"{path}: holds neither model.safetensors nor a checkpoint; name a weights file, a "
            "Hugging Face folder or the folder of a run that has saved something."
        )
    return Source(where, dict(newest[1]["model"]), "")


def _open_file(path: Path, where: str) -> Source:
    state, metadata = load_state_dict_file(path), read_metadata(path)
    texts = {n: v if isinstance(v, str) else json.dumps(v) for n, v in metadata.items()}
    info = EncoderInfo.from_metadata(metadata)
    layout = str(metadata.get("layout", "timm")) if info is not None else ""
    classes = metadata.get("classes")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        classes = None
    named = None if classes is None else tuple(classes)
    return Source(where, state, layout, texts, info, named)


def _open_public(public: PublicWeights) -> Source:
    """Return published weights with what their repository says of them."""
    state, known = load_state_dict_file(public.file), public.metadata
    info = None
    if "model_name" in known and detect(state) == "timm":
        info = described(known, known["model_name"], known.get("in_chans", 3))
        if known.get("classes") and "head.fc.weight" not in state:
            info = dataclasses.replace(info, classes=None)
    texts = {n: known[n] for n in ("origin",) if n in known}
    texts |= info.to_metadata() if info else {}
    layout = "timm" if info is not None else ""
    return Source(public.name, state, layout, texts, info, known.get("classes"))


def metadata_of(source: Path | str) -> dict[str, Any]:
    """Return what weights say about themselves, by the names of EncoderInfo's attributes.

    A run that has exported nothing yet says what its settings do; {} where nobody says anything.

    Raises:
        CheckpointError: as `weights_file`.
        ConfigError: a run whose settings cannot be read.
    """
    if is_public(source):
        return dict(find_public(str(source)).metadata)
    file = weights_file(source)
    if file is not None:
        return read_metadata(file)
    return facts_of_run(source) | {"origin": RunFolder(source).read_origin()}


def licence_notices(source: Path | str, known: Mapping[str, Any] | None = None) -> list[str]:
    """Return what has to be said about the licence of weights, to whoever starts from them.

    Of published ones always; of others where their origin is known, which is that of the weights
    that they were made of.

    Args:
        source: the weights.
        known: what they say about themselves; None: as `metadata_of`.

    Raises:
        CheckpointError, ConfigError: as `metadata_of`.
    """
    if is_public(source):
        public = find_public(str(source))
        return [public.notice] if "origin" in public.metadata else []
    origin = str((metadata_of(source) if known is None else known).get("origin") or "")
    if not origin:
        return []
    _, _, licence = origin.lower().rpartition("licence")
    if is_non_commercial(licence):
        return [f"{source}: made of {origin}: no commercial use, which carries over."]
    return [f"{source}: made of {origin}."]


def load_decoder(model: FCMAE, source: Path | str) -> None:
    """Load the decoder of a pretraining into `model`, every entry or nothing.

    Args:
        model: changed in place.
        source: a run, or a checkpoint of a whole FCMAE in any layout.

    Raises:
        CheckpointError: as `open_source`; no decoder, or one of other shapes, all listed.
    """
    found = open_source(source)
    state = write_weights(read_weights(found.state, found.layout), "fcmae")
    theirs = {n.removeprefix("decoder."): t for n, t in state.items() if n.startswith("decoder.")}
    try:
        model.decoder.load_state_dict(theirs)
    except RuntimeError as error:
        raise CheckpointError(
            f"{source}: its decoder does not fit ({' '.join(str(error).split())[:500]}); choose "
            "the model.decoder_dim, model.decoder_depth, data.in_chans and encoder of that run."
        ) from error


def described(known: Mapping[str, Any], model_name: str, in_chans: int, **more: Any) -> EncoderInfo:
    """Return what is known of weights as an EncoderInfo; what nobody says is as usual."""
    mean, std = default_mean_std(in_chans)
    usual = {"stem_stride": 4, "image_size": (224, 224), "mean": mean, "std": std}
    fields = EncoderInfo.__dataclass_fields__
    told = {name: value for name, value in known.items() if name in fields}
    own = {"model_name": model_name, "in_chans": in_chans}
    return EncoderInfo(**{**usual, **told, **more, **own})


def _class_names(folder: Path) -> tuple[str, ...] | None:
    """Return the classes that a Hugging Face folder names, in order of the outputs."""
    try:
        labels = json.loads((folder / "config.json").read_text(encoding="utf-8"))["id2label"]
        names = tuple(str(labels[str(index)]) for index in range(len(labels)))
        is_unnamed = names == tuple(f"LABEL_{index}" for index in range(len(names)))
        return None if is_unnamed else names  # transformers' own, of encoders too
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _untrained_norm(model: nn.Module) -> dict[str, Any]:
    """Return the norm before the classifier, which pretraining leaves at its start."""
    return {name: t for name, t in model.state_dict().items() if name.startswith("head.norm.")}


def check_nothing_given(
    source: str | Path,
    model_name: str | None,
    in_chans: int | None,
    stem_stride: int | None,
    image_size: int | None,
) -> None:
    """Raise ConfigError for arguments beside a source that says itself what they say."""
    given = {
        "model.name": model_name,
        "data.in_chans": in_chans,
        "model.stem_stride": stem_stride,
        "data.image_size": image_size,
    }
    named = [f"--{name}" for name, value in given.items() if value is not None]
    if named:
        raise ConfigError(f"{source}: says itself what {', '.join(named)} say; remove them.")


def load_described_encoder(
    source: str | Path,
    *,
    model_name: str | None = None,
    in_chans: int | None = None,
    stem_stride: int | None = None,
    image_size: int | None = None,
) -> tuple[ConvNeXt, EncoderInfo]:
    """Return the encoder of a run folder or weights file, in evaluation mode, and how to feed it.

    The keyword arguments are for files that do not say it themselves; in_chans, stem_stride and
    image_size default to 3, 4 and 224 px, mean and deviation to those of `default_mean_std`.

    Raises:
        ConfigError: a file that does not say its model, without `model_name`; the arguments
            beside a source that knows better; as `load_run`.
        CheckpointError: as `load_run` and `load_encoder`.
    """
    known = metadata_of(source) if is_public(source) else {}
    if not known and (Path(source) / "model.safetensors").is_file():
        source = Path(source) / "model.safetensors"
    is_run = Path(source).is_dir() and not known
    info = None if is_run or known else EncoderInfo.from_metadata(read_metadata(source))
    if "model_name" in known:
        info = described(known | {"classes": None}, known["model_name"], known["in_chans"])
    if is_run or info is not None:
        check_nothing_given(source, model_name, in_chans, stem_stride, image_size)
    if is_run:
        config, model, step = load_run(source)
        origin = RunFolder(source).read_origin()
        return model.encoder, EncoderInfo.of_run(config, model, step, origin)
    if info is None:
        if model_name is None and (known or Path(source).is_file()):
            raise ConfigError(
                f"{source}: does not say which model its weights belong to; "
                "add --model.name, such as --model.name convnextv2_atto."
            )
        channels = 3 if in_chans is None else in_chans
        side = 224 if image_size is None else image_size
        check_range("data.image_size", side, ImageSize)
        check_range("data.in_chans", channels, Channels)
        info = described(
            known | {"classes": None},
            model_name or "convnextv2_atto",  # a file that is missing is told below
            channels,
            stem_stride=4 if stem_stride is None else stem_stride,
            image_size=(side, side),
        )
    encoder = info.create_model()
    load_encoder(encoder, source)
    return encoder.eval(), info
