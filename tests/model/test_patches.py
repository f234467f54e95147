"""Images to patches and back."""

from __future__ import annotations

import naive
import pytest
import torch

from fcmae.model.patches import patchify, unpatchify


def test_patches_are_row_major_and_values_run_row_column_channel_by_hand() -> None:
    image = torch.tensor(
        [
            [[1, 2, 3, 4], [5, 6, 7, 8]],
            [[10, 20, 30, 40], [50, 60, 70, 80]],
        ]
    ).unsqueeze(0)  # 2 channels, 2 x 4 px
    assert patchify(image, 2).tolist() == [
        [[1, 10, 2, 20, 5, 50, 6, 60], [3, 30, 4, 40, 7, 70, 8, 80]]
    ]


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("patch_size", [1, 2, 4])
def test_patchify_equals_slicing_and_unpatchify_undoes_it(channels: int, patch_size: int) -> None:
    rng = torch.Generator().manual_seed(channels)
    rows, columns = 2, 3
    images = torch.randn(
        2, channels, rows * patch_size, columns * patch_size, generator=rng, dtype=torch.float64
    )
    patches = patchify(images, patch_size)
    assert patches.shape == (2, rows * columns, patch_size**2 * channels)
    assert torch.equal(patches, naive.patchify(images, patch_size))
    assert torch.equal(unpatchify(patches, patch_size, (rows, columns)), images)


def test_an_image_that_patches_do_not_tile_is_refused() -> None:
    with pytest.raises(RuntimeError, match="unflatten"):
        patchify(torch.zeros(1, 3, 6, 8), 4)
