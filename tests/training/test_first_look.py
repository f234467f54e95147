"""The picture of a first batch shows where images have no data."""

import torch

from fcmae.training.first_look import draw_sheet, hatched


def test_holes_are_hatched_in_grey_and_in_colour() -> None:
    valid = torch.ones(1, 64, 96, dtype=torch.bool)
    valid[:, :, :40] = False
    for bands in (1, 3, 5):
        image = torch.full((bands, 64, 96), 0.6)
        drawn = hatched(image, valid)
        assert drawn.shape == image.shape
        assert torch.equal(drawn[..., 40:], image[..., 40:])
        hole = drawn[..., :40].mean(dim=0)
        assert (hole.max() - hole.min()) > 0.1, "nobody sees the stripes"
        assert hatched(image, None) is image
        sheet = draw_sheet([drawn])
        assert sheet.size == ((96, 64) if bands != 5 else (5 * 96 + 4 * 4, 64))
