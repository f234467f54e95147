"""Exports of a run in the layouts of other codes, by the converter and its proof."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from fcmae.model.autoencoder import FCMAE
from fcmae.weights.files import write_converted
from fcmae.weights.info import EncoderInfo


def export_authors_dense(model: nn.Module, path: Path, info: EncoderInfo) -> str:
    """Write an encoder or classifier under the authors' dense names; see `write_converted`."""
    return _export(model, path, info, "authors-dense")


def export_authors_sparse(model: nn.Module, path: Path, info: EncoderInfo) -> str:
    """Write an encoder under the authors' sparse names; see `write_converted`."""
    return _export(model, path, info, "authors-sparse")


def export_authors_fcmae(model: nn.Module, path: Path, info: EncoderInfo) -> str:
    """Write a whole FCMAE as the authors' pretraining does; see `write_converted`."""
    return _export(model, path, info, "authors-fcmae")


def export_huggingface(model: nn.Module, path: Path, info: EncoderInfo) -> str:
    """Write an encoder or classifier as a folder that transformers loads; see `write_converted`."""
    return _export(model, path, info, "huggingface")


def _export(model: nn.Module, path: Path, info: EncoderInfo, to: str) -> str:
    state = {name: value.detach().cpu().float() for name, value in model.state_dict().items()}
    source = "fcmae" if isinstance(model, FCMAE) else "timm"
    told = write_converted(state, source, path, to, info.to_metadata(), classes=info.classes)
    return "\n".join(told)
