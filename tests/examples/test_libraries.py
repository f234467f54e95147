"""Every library loads the exported folder by name and computes what the run's encoder does."""

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from example_scripts import EXAMPLES, exported_folder, run_script
from timm.models.convnext import ConvNeXt
from torch import Tensor, nn

# The stage whose map the script calls `features`.
SCRIPTS = {
    "timm_features.py": 3,
    "smp_segmentation.py": 3,
    "torchvision_detection.py": 3,
    "anomalib_patchcore.py": 2,
    "mmpretrain_backbone.py": 3,
}
MOST_LINES = 40


@pytest.fixture(
    scope="module",
    params=[1, 3, pytest.param(4, marks=pytest.mark.slow), 13],
    ids="{} channels".format,
)
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, ConvNeXt]:
    folder = tmp_path_factory.mktemp("exports") / "encoder-timm"
    return folder, exported_folder(folder, request.param)


class PatchcoreAsInAnomalib(nn.Module):
    """Calls timm as anomalib 2.7 does; the real one needs another jsonargparse than fcmae."""

    def __init__(self, layers: list[str], backbone: str, pre_trained: bool) -> None:
        super().__init__()
        self.layers = layers
        named = timm.create_model(backbone, pretrained=False, features_only=False, exportable=True)
        places = [info["module"] for info in named.feature_info]
        self.timm_model = timm.create_model(
            backbone,
            pretrained=pre_trained,
            pretrained_cfg=None,
            features_only=True,
            exportable=True,
            out_indices=[places.index(layer) for layer in layers],
        )

    def feature_extractor(self, images: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.layers, self.timm_model(images), strict=True))

    def subsample_embedding(self, sampling_ratio: float, embeddings: Tensor) -> None:
        self.memory = embeddings

    def forward(self, images: Tensor) -> Any:
        maps = self.feature_extractor(images)["stages.2"]
        if self.training:
            return maps.detach()
        return types.SimpleNamespace(pred_score=maps.mean(dim=(1, 2, 3)), anomaly_map=maps)


@pytest.fixture
def anomalib(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in for anomalib where it is not installed."""
    try:
        import anomalib  # noqa: F401
    except ImportError:
        name = "anomalib.models.image.patchcore.torch_model"
        parts = name.split(".")
        for count in range(1, len(parts) + 1):
            module = types.ModuleType(".".join(parts[:count]))
            monkeypatch.setitem(sys.modules, module.__name__, module)
        module.PatchcoreModel = PatchcoreAsInAnomalib  # type: ignore[attr-defined]


@torch.no_grad()
def map_of(encoder: ConvNeXt, images: Tensor, stage: int) -> Tensor:
    found: Tensor = encoder.stages[: stage + 1](encoder.stem(images))
    return found


@pytest.mark.usefixtures("anomalib")
@pytest.mark.parametrize("name", SCRIPTS)
def test_features_of_a_script_equal_the_runs_encoder(
    exported: tuple[Path, ConvNeXt], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "smp_segmentation.py":
        pytest.importorskip("segmentation_models_pytorch", reason="the extra segmentation")
    folder, encoder = exported
    found = run_script(monkeypatch, name, folder)
    images = found["images"]
    assert images.shape[1] == encoder.stem[0].in_channels
    expected = map_of(encoder, images, SCRIPTS[name])
    torch.testing.assert_close(found["features"], expected, rtol=0, atol=1e-6)


def test_the_folder_is_pushed_as_it_lies(
    exported: tuple[Path, ConvNeXt], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The stand-in for a hub keeps what it is given, and timm loads that."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    folder, encoder = exported

    class Hub:
        def create_repo(self, repository: str, *, private: bool, exist_ok: bool) -> None:
            (tmp_path / repository).mkdir(parents=True)

        def upload_folder(self, *, folder_path: str, repo_id: str) -> str:
            for file in Path(folder_path).iterdir():
                (tmp_path / repo_id / file.name).write_bytes(file.read_bytes())
            return repo_id

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    run_script(monkeypatch, "push_to_hub.py", folder, "me/mine")
    loaded = timm.create_model(f"local-dir:{tmp_path / 'me/mine'}", pretrained=True)
    weights = encoder.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in loaded.state_dict().items())


@pytest.mark.parametrize("name", [*SCRIPTS, "push_to_hub.py"])
def test_a_script_is_read_at_a_glance(name: str) -> None:
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_LINES
    assert f"python examples/{name} runs/mine/export/encoder-timm" in text
