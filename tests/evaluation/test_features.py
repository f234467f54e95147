"""Frozen features: what they are, for which images, and what extraction leaves alone."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import make_pictures

from fcmae.data import Loader, find_images
from fcmae.errors import DataError
from fcmae.evaluation import (
    evaluating,
    evaluation_loader,
    extract_features,
    extract_together,
    pooled_features,
    thumbnails,
)
from fcmae.weights.encoder_info import EncoderInfo
from fcmae.weights.export import export
from sparse.backends import native
from sparse.ops.compiler import missing_kernels

INFO = EncoderInfo(
    model_name="convnextv2_atto",
    in_chans=1,
    stem_stride=4,
    image_size=(64, 96),
    mean=(0.5,),
    std=(0.2,),
)


def loader_of(folder: Path, batch_size: int = 5) -> Loader:
    return evaluation_loader(find_images(str(folder)), INFO, batch_size=batch_size)


def test_features_are_the_mean_of_the_last_map_before_the_final_norm(tmp_path: Path) -> None:
    encoder = INFO.create_model()
    features = extract_features(encoder, loader_of(make_pictures(tmp_path / "p", 3)))
    images = next(iter(loader_of(tmp_path / "p", 6)))["image"]
    with torch.no_grad():
        expected = encoder.eval().forward_features(images).mean((2, 3))
    torch.testing.assert_close(features.vectors, expected, rtol=1e-4, atol=1e-5)  # other batches
    assert features.vectors.shape == (6, 320)
    assert features.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert [Path(path).name for path in features.paths[:2]] == ["0.png", "1.png"]


def test_extraction_restores_the_mode_of_every_module_and_leaves_no_gradient(
    tmp_path: Path,
) -> None:
    encoder = INFO.create_model().train()
    encoder.stages[1].eval()
    before = [module.training for module in encoder.modules()]
    seen: list[bool] = []
    handle = encoder.stem.register_forward_hook(lambda *_: seen.append(encoder.training))
    features = extract_features(encoder, loader_of(make_pictures(tmp_path / "p", 1)))
    handle.remove()
    assert seen == [False]
    assert [module.training for module in encoder.modules()] == before
    assert not features.vectors.requires_grad


def test_modes_come_back_after_an_error() -> None:
    encoder = INFO.create_model().train()

    def fail() -> None:
        with evaluating(encoder):
            assert not encoder.training
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert encoder.training


def test_undecodable_files_are_listed_and_have_no_vector(tmp_path: Path) -> None:
    pictures = make_pictures(tmp_path / "p", 2)
    (pictures / "dark" / "broken.png").write_bytes(b"no picture")
    features = extract_together({"raw": thumbnails}, loader_of(pictures, batch_size=1))["raw"]
    assert len(features.vectors) == len(features.paths) == len(features.labels) == 4
    assert [Path(path).name for path, _ in features.skipped] == ["broken.png"]


def test_no_decodable_file_is_an_error_that_names_the_first(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"none of the 1 images could be decoded.*a\.png"):
        extract_together({"raw": thumbnails}, loader_of(tmp_path))


def test_describers_get_the_same_images_in_the_same_order(tmp_path: Path) -> None:
    loader = loader_of(make_pictures(tmp_path / "p", 2), batch_size=3)
    together = extract_together({"encoder": INFO.create_model(), "raw": thumbnails}, loader)
    alone = extract_together({"raw": thumbnails}, loader)["raw"]
    torch.testing.assert_close(together["raw"].vectors, alone.vectors, rtol=0, atol=0)
    assert together["encoder"].paths == alone.paths


def test_thumbnails_average_squares_of_pixels_and_keep_small_images() -> None:
    image = torch.arange(64.0).repeat_interleave(2).repeat(96, 1)[None, None]  # [1, 1, 96, 128]
    found = thumbnails(image).view(32, 32)
    torch.testing.assert_close(found, torch.arange(32.0).mul(2).add(0.5).expand(32, 32))
    assert thumbnails(torch.zeros(2, 3, 8, 40)).shape == (2, 3 * 8 * 32)


def test_features_are_the_native_backends_and_what_is_saved_stays_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = INFO.create_model()
    loader, calls = loader_of(make_pictures(tmp_path / "p", 3)), []
    run_block = native.run_block
    monkeypatch.setattr(
        "sparse.whole.run_block", lambda *given: (calls.append(1), run_block(*given))[1]
    )
    export(encoder, "timm", tmp_path / "before.safetensors", INFO)
    extract_together(
        {"encoder": encoder, "evened": lambda images, _: pooled_features(encoder, images)}, loader
    )
    export(encoder, "timm", tmp_path / "after.safetensors", INFO)
    before, after = (load_file(tmp_path / f"{name}.safetensors") for name in ("before", "after"))
    assert list(before) == list(after)
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    num_blocks = sum(len(stage.blocks) for stage in encoder.stages)
    num_batches = 2
    assert missing_kernels() is not None or len(calls) == 2 * num_batches * num_blocks
