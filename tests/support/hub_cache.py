"""A cache of published weights, laid out as the hub's own library lays it out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from timm.models.convnext import ConvNeXt

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def publish(cache: Path, repo: str, files: Mapping[str, bytes | Path]) -> None:
    """Put a repository into a cache: blobs by content, a snapshot of links, the name main.

    Args:
        cache: HF_HUB_CACHE.
        repo: owner/name.
        files: contents by name, or a file to take them from.
    """
    root = cache / f"models--{repo.replace('/', '--')}"
    snapshot = root / "snapshots" / COMMIT
    for folder in (root / "blobs", root / "refs", snapshot):
        folder.mkdir(parents=True, exist_ok=True)
    (root / "refs" / "main").write_text(COMMIT)
    for number, (name, content) in enumerate(files.items()):
        blob = root / "blobs" / f"{number:040x}"
        blob.write_bytes(content.read_bytes() if isinstance(content, Path) else content)
        (snapshot / name).symlink_to(Path("../../blobs") / blob.name)


def published_by_timm(cache: Path, name: str, folder: Path, licence: str | None = None) -> ConvNeXt:
    """Publish an atto of timm's layout under timm/NAME with random weights, and return it."""
    cfg = timm.get_pretrained_cfg(name)
    torch.manual_seed(5)
    model = timm.create_model(cfg.architecture, num_classes=cfg.num_classes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    save_file(model.state_dict(), folder / "weights", metadata={"format": "pt"})
    config = {
        "architecture": cfg.architecture,
        "num_classes": cfg.num_classes,
        "pretrained_cfg": {
            "input_size": list(cfg.input_size),
            "mean": list(cfg.mean),
            "std": [0.2, 0.3, 0.4],
            "num_classes": cfg.num_classes,
            "first_conv": "stem.0",
            "classifier": "head.fc",
        },
    }
    files: dict[str, Any] = {
        "config.json": json.dumps(config).encode(),
        "model.safetensors": folder / "weights",
    }
    if licence is not None:
        files["README.md"] = f"---\nlicense: {licence}\n---\n# A card\n".encode()
    publish(cache, f"timm/{name}", files)
    return model.eval()
