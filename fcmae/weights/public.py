"""Weights that others have published on the Hugging Face hub, by name, with their licence.

`timm/convnextv2_tiny.fcmae` and `hf-hub:owner/name` are looked up through huggingface_hub's own
cache, which timm and transformers share; what is cached needs no network (HF_HUB_OFFLINE=1). A
folder that holds such a repository, copied from elsewhere, is one, too.
"""

import contextlib
import functools
import json
import re
import socket
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import timm
from huggingface_hub import ModelCard, constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub import errors as hub

from fcmae.errors import CheckpointError
from fcmae.weights.files import read_metadata

_NAME = re.compile(r"(?:hf-hub:(?P<repo>[\w.-]+/[\w.-]+)|(?P<timm>timm/[\w.-]+))(?:@(?P<at>\S+))?")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
# Marks in the names of licences that forbid commercial use; others may do so in their text.
_NON_COMMERCIAL = ("-nc", "noncommercial", "non-commercial", "research")
UNKNOWN = "unknown"
CONNECTING_SECONDS = 5.0
# (channels of the first stage, blocks of the third) -> the variant, as timm names it
_VARIANTS = {
    (40, 6): "atto",
    (48, 6): "femto",
    (64, 6): "pico",
    (80, 8): "nano",
    (96, 9): "tiny",
    (96, 27): "small",
    (128, 27): "base",
    (192, 27): "large",
    (256, 27): "xlarge",
    (352, 27): "huge",
}


@dataclass(frozen=True)
class PublicWeights:
    """Published weights as they lie in the cache.

    Attributes:
        name: as the user wrote it.
        file: the weights.
        licence: as the card or timm says it, or UNKNOWN.
        metadata: what the repository says of the model, by the names of EncoderInfo's attributes:
            model_name, in_chans, mean, std, image_size, classes, origin, as far as it says them.
    """

    name: str
    file: Path
    licence: str
    metadata: dict[str, Any]

    @property
    def notice(self) -> str:
        """A sentence about the licence, for whoever starts from these weights."""
        if self.licence == UNKNOWN:
            return f"{self.name}: its licence is not known here; look it up before you use it."
        if is_non_commercial(self.licence):
            return (
                f"{self.name}: licence {self.licence}, no commercial use, which carries over to "
                "everything that is made of these weights."
            )
        return f"{self.name}: licence {self.licence}, which carries over to what is made of them."


def is_non_commercial(licence: str) -> bool:
    """Whether the name of a licence says that it forbids commercial use."""
    return any(mark in licence.lower() for mark in _NON_COMMERCIAL)


def is_public(source: Path | str) -> bool:
    """Whether a source is the name of published weights, or a folder that holds a repository.

    A path that exists is no name; a folder that was exported here says more and is no repository.
    """
    path = Path(source)
    if path.exists():
        return path.is_dir() and _is_repository(path)
    return _NAME.fullmatch(str(source)) is not None


def _is_repository(folder: Path) -> bool:
    """Whether timm or transformers has written the folder."""
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    if not isinstance(config, dict) or not {"architecture", "model_type"} & config.keys():
        return False
    files = [file for file in WEIGHTS if (folder / file).is_file()]
    return bool(files) and "model_name" not in read_metadata(folder / WEIGHTS[0])


@functools.cache
def find_public(name: str) -> PublicWeights:
    """Return published weights, downloaded unless they are cached.

    Args:
        name: `timm/MODEL.TAG`, or `hf-hub:OWNER/NAME` in the layout of timm or transformers, with
            `@REVISION` behind it or not; or a folder of such a layout.

    Raises:
        CheckpointError: there is no such repository, it has no weights, its licence must be
            accepted first, or neither the cache nor the network has it.
    """
    if Path(name).is_dir():
        place = _Place(name, Path(name).name, None, Path(name))
    else:
        match = _NAME.fullmatch(name)
        assert match is not None, name
        place = _Place(name, match["repo"] or match["timm"], match["at"])
    config = json.loads(_download(place, ("config.json",)).read_text("utf-8"))
    file = _download(place, WEIGHTS)
    licence = _licence(place, config)
    metadata = _metadata(config, place)
    if place.folder is None or licence != UNKNOWN:  # a folder may be of one's own
        metadata["origin"] = f"{name}, licence {licence}"
    return PublicWeights(name, file, licence, metadata)


class _Place(NamedTuple):
    """Where published weights lie.

    Attributes:
        name: as the user wrote it.
        repo: owner/name.
        revision: of it; None: the newest.
        folder: that holds it, instead of the hub.
    """

    name: str
    repo: str
    revision: str | None
    folder: Path | None = None


def _download(place: _Place, files: tuple[str, ...]) -> Path:
    """Return the first of `files` that is cached, or else that the repository has."""
    name, repo, revision, folder = place
    cached = [path for file in files if (path := _cached(place, file)) is not None]
    if cached:
        return cached[0]
    if folder is not None:
        raise CheckpointError(f"{name}: the folder has no {' or '.join(files)}; copy it whole.")
    if not _is_reached(constants.ENDPOINT):
        raise CheckpointError(_unreachable(name, repo, files[0]))
    missing: Exception | None = None
    for file in files:
        try:
            return Path(hf_hub_download(repo, file, revision=revision))
        except hub.GatedRepoError as error:
            raise CheckpointError(
                f"{name}: its licence must be accepted first; do so on the page of {repo}, then "
                "log in by `hf auth login`."
            ) from error
        except (hub.RepositoryNotFoundError, hub.RevisionNotFoundError) as error:
            raise CheckpointError(
                f"{name}: the hub has no such repository or revision; check the name, which is "
                "timm/MODEL.TAG or hf-hub:OWNER/NAME."
            ) from error
        except hub.EntryNotFoundError as error:  # perhaps it has the next one
            missing = error
        except OSError as error:
            raise CheckpointError(_unreachable(name, repo, files[0])) from error
    if isinstance(missing, hub.LocalEntryNotFoundError):
        raise CheckpointError(_unreachable(name, repo, files[0])) from missing
    raise CheckpointError(
        f"{name}: has no {' or '.join(files)}; expected a model of timm or transformers."
    )


def _cached(place: _Place, file: str) -> Path | None:
    if place.folder is not None:
        path = place.folder / file
        return path if path.is_file() else None
    found = try_to_load_from_cache(place.repo, file, revision=place.revision)
    return Path(found) if isinstance(found, str) else None


def _is_reached(endpoint: str) -> bool:
    return not constants.is_offline_mode() and _answers(endpoint)


@functools.cache
def _answers(endpoint: str) -> bool:
    """Whether something answers there; the hub's library tries for half a minute to find out."""
    if urllib.request.getproxies():  # a proxy answers for it
        return True
    where = urlsplit(endpoint)
    port = where.port or (80 if where.scheme == "http" else 443)
    try:
        with socket.create_connection((where.hostname or "", port), timeout=CONNECTING_SECONDS):
            return True
    except OSError:
        return False


def _unreachable(name: str, repo: str, file: str) -> str:
    why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub is not reached"
    folder = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
    return (
        f"{name}: {file} is not in the cache, and {why}; where there is a network, run "
        f"`hf download {repo}` and copy the folder that it makes to {folder}, or name a weights "
        "file."
    )


def _licence(place: _Place, config: dict[str, Any]) -> str:
    """Return what the card, the configuration or timm itself says."""
    _, repo, revision, folder = place
    card = _cached(place, "README.md")
    told = None if card is None else _licence_of_card(card)
    told = told or config.get("pretrained_cfg", {}).get("license") or config.get("license")
    if not told and repo.startswith("timm/"):
        known = timm.get_pretrained_cfg(repo.removeprefix("timm/"), allow_unregistered=True)
        told = None if known is None else known.license
    is_on_hub = card is None and folder is None
    if not told and is_on_hub and _is_reached(constants.ENDPOINT):
        with contextlib.suppress(hub.EntryNotFoundError, OSError):
            told = _licence_of_card(Path(hf_hub_download(repo, "README.md", revision=revision)))
    return str(told) if told else UNKNOWN


def _licence_of_card(path: Path) -> str | None:
    try:
        data = ModelCard.load(path).data
    except (OSError, ValueError):  # such as a header that is no YAML
        return None
    return data.get("license_name") or data.get("license")


def _metadata(config: dict[str, Any], place: _Place) -> dict[str, Any]:
    """Return what the repository says of the model, whichever library has written it."""
    if "architecture" in config:  # timm
        settings = {**config, **config.get("pretrained_cfg", {})}
        channels, *size = settings.get("input_size", (3, 224, 224))
        return {
            "model_name": config["architecture"],
            "in_chans": channels,
            "image_size": tuple(size),
            **{n: tuple(settings[n]) for n in ("mean", "std") if n in settings},
            **_classes(settings.get("label_names"), settings.get("num_classes", 0)),
        }
    known: dict[str, Any] = {"in_chans": config.get("num_channels", 3)}
    side = config.get("image_size")
    if side is not None:
        known["image_size"] = (side, side)
    variant = _VARIANTS.get((config.get("hidden_sizes", [0])[0], config.get("depths", [0] * 3)[2]))
    if variant is not None:
        known["model_name"] = f"{config.get('model_type')}_{variant}"
    try:
        file = _download(place, ("preprocessor_config.json",))
        told = json.loads(file.read_text("utf-8"))
    except CheckpointError:  # not every repository has one
        told = {}
    for ours, theirs in (("mean", "image_mean"), ("std", "image_std")):
        if theirs in told:
            known[ours] = tuple(told[theirs])
    labels = config.get("id2label")
    if any(name.endswith("ForImageClassification") for name in config.get("architectures", ())):
        known |= _classes([labels[key] for key in sorted(labels, key=int)] if labels else None, 0)
    return known


def _classes(names: Any, count: int) -> dict[str, tuple[str, ...]]:
    if isinstance(names, list) and names:
        return {"classes": tuple(map(str, names))}
    return {"classes": tuple(map(str, range(count)))} if count else {}
