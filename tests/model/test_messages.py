"""What FCMAE refuses, and in which words."""

from __future__ import annotations

import pytest
import torch
from small_model import build, draw_images

from fcmae import FCMAE, FCMAEOutput
from fcmae.errors import ConfigError, UnsupportedModelError


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 100}, r"data.image_size: 100 px is not a multiple of mask.patch_size \(32"),
        ({"image_size": 100}, "4 px per side would belong to no patch. Use 96 or 128"),
        ({"image_size": (64, 20)}, r"20 px is not a multiple of .*Use 32\."),
        ({"image_size": 0}, "data.image_size: 0 px is not a multiple"),
        ({"patch_size": 48}, "^patch_size: 48 px is not a multiple of the model's total stride"),
        ({"patch_size": 0}, "^patch_size: 0 px"),
        ({"mask_ratio": 0.0}, "mask.ratio: 0.0 of 6 patches leaves none hidden"),
        ({"mask_ratio": 0.9}, "mask.ratio: 0.9 of 6 patches leaves none visible"),
        ({"image_size": 32}, "mask.ratio: 1 patch cannot be both"),
        ({"decoder_dim": 0}, "model.decoder_dim, model.decoder_depth: got 0 and 1, expected a wid"),
        ({"decoder_depth": -1}, "got 6 and -1"),
        ({"backend": "dense"}, "^backend: got 'dense', expected one of native"),
        ({"grn_scope": "all"}, "^grn_scope: got 'all', expected one of image, batch"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    small: None, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build(**settings)


def test_an_encoder_that_cannot_run_sparsely_is_refused_by_layer() -> None:
    with pytest.raises(UnsupportedModelError, match="stem: its convolution overlaps"):
        FCMAE("convnext_atto_ols")


def test_images_of_another_size_or_without_a_batch_are_refused(small: None) -> None:
    model = build()
    for shape in ((2, 3, 96, 64), (3, 64, 96)):
        with pytest.raises(ValueError, match=r"expected \[N, 3, 64, 96\]; resize the images or"):
            model(torch.zeros(shape, dtype=torch.float64))


def test_visible_patches_of_all_patches_leave_nothing_to_score(small: None) -> None:
    model = build()
    everything = torch.arange(6).expand(2, 6)
    with pytest.raises(ValueError, match=r"visible: all 6 patches .* nothing is hidden"):
        model(draw_images(model), everything)


def test_image_size_may_be_a_list_as_configuration_files_give_it(small: None) -> None:
    model = build(image_size=[64, 96])
    assert model.image_size == (64, 96)
    assert isinstance(model(draw_images(model)), FCMAEOutput)
