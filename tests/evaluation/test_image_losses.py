"""The loss of each picture: the model's own, whatever lies beside the picture in a batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fcmae.evaluation.image_losses import ImageLosses
from fcmae.model.autoencoder import FCMAE, FCMAEOutput


@pytest.fixture(scope="module")
def model() -> FCMAE:
    torch.manual_seed(0)
    return FCMAE(
        "convnextv2_atto", image_size=(64, 96), in_chans=2, mask_ratio=0.5, decoder_dim=8
    ).eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(3, 2, 64, 96, generator=torch.Generator().manual_seed(1))


def holes(images: Tensor) -> Tensor:
    """The second image lacks a corner, the third nearly everything."""
    valid = torch.ones(len(images), 1, 64, 96, dtype=torch.bool)
    valid[1, :, :40, :40] = False
    valid[2, :, :, 20:] = False
    return valid


@torch.no_grad()
@pytest.mark.parametrize("rows", [[0, 1], [0]])
@pytest.mark.parametrize("has_holes", [False, True])
def test_the_losses_of_pictures_are_what_the_models_loss_is_the_mean_of(
    model: FCMAE,
    images: Tensor,
    monkeypatch: pytest.MonkeyPatch,
    rows: list[int],
    has_holes: bool,
) -> None:
    seen: list[float] = []
    original = model.forward

    def recorded(*given: Tensor, **more: Tensor) -> FCMAEOutput:
        out = original(*given, **more)
        seen.append(float(out.loss))
        return out

    monkeypatch.setattr(model, "forward", recorded)
    found = ImageLosses(model)(images[rows], holes(images)[rows] if has_holes else None)
    assert found.shape == (len(rows), 1)
    assert float(found.mean()) == pytest.approx(sum(seen) / len(seen), rel=1e-5)


@torch.no_grad()
def test_a_pictures_loss_does_not_depend_on_those_beside_it(model: FCMAE, images: Tensor) -> None:
    valid = holes(images)
    together, with_holes = ImageLosses(model)(images, None), ImageLosses(model)(images, valid)
    for row in range(3):
        alone = ImageLosses(model)(images[row, None], None)
        torch.testing.assert_close(alone[0], together[row], rtol=1e-5, atol=1e-6)
    alone = ImageLosses(model)(images[1, None], valid[1, None])
    torch.testing.assert_close(alone[0], with_holes[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(with_holes[0], together[0], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_a_picture_with_too_little_data_has_no_loss(model: FCMAE, images: Tensor) -> None:
    found = ImageLosses(model)(images, holes(images))
    assert torch.isfinite(found[:, 0]).tolist() == [True, True, False]
    none = torch.zeros(1, 1, 64, 96, dtype=torch.bool)
    assert torch.isnan(ImageLosses(model)(images[:1], none)).all()
