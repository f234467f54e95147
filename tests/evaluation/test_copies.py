"""Copies of pictures: what a person would call one is found, and pictures of one kind are not."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance
from skimage import data
from torch import Tensor

from fcmae.evaluation.copies import (
    Pairs,
    candidate_pairs,
    copy_views,
    correlation,
    evened,
    from_nearer,
    looked_at,
)
from fcmae.evaluation.neighbours import Index, Neighbours, Whitening
from fcmae.model.backbones import create_backbone

TILE_PX = 100


def tiles() -> list[Image.Image]:
    """Parts of photographs, many of which are of one kind: bricks, gravel, coins, a face."""
    found = []
    for name in ("camera", "coins", "brick", "gravel", "moon", "page", "astronaut", "coffee"):
        grey = Image.fromarray(getattr(data, name)()).convert("L")
        for top in range(0, grey.height - TILE_PX + 1, TILE_PX):
            for left in range(0, grey.width - TILE_PX + 1, TILE_PX):
                tile = grey.crop((left, top, left + TILE_PX, top + TILE_PX))
                if np.asarray(tile).std() > 12:  # a piece of sky is like any other
                    found.append(tile)
    return found


def cropped(picture: Image.Image) -> Image.Image:
    return picture.crop((4, 6, 94, 96))


def brighter(picture: Image.Image) -> Image.Image:
    return ImageEnhance.Brightness(picture).enhance(1.2)


def compressed(picture: Image.Image) -> Image.Image:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=40)
    return Image.open(stream)


def tensor(picture: Image.Image) -> Tensor:
    """[1, 96, 96] in 0..1, as a picture that was read."""
    resized = picture.resize((96, 96), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(resized, np.float32))[None] / 255


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    return tiles()


@pytest.mark.parametrize(
    ("change", "share"),
    # Of a page or the moon on 100 px, JPEG of quality 40 leaves little that is fine.
    [(cropped, 0.95), (brighter, 1.0), (compressed, 0.85)],
)
def test_the_pixels_of_a_copy_correlate_whatever_was_done_to_it(
    pictures: list[Image.Image], change: Callable[[Image.Image], Image.Image], share: float
) -> None:
    found = [correlation(tensor(one), tensor(change(one))) for one in pictures[::6]]
    assert np.mean(np.array(found) >= 0.7) >= share


def test_the_pixels_of_pictures_of_one_kind_do_not_correlate(pictures: list[Image.Image]) -> None:
    looked = [tensor(one) for one in pictures]
    found = [correlation(one, other) for one, other in itertools.pairwise(looked)]
    assert max(found) < 0.5


def test_brightness_and_contrast_do_not_count_in_a_view() -> None:
    images = torch.rand(3, 2, 32, 40, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(evened(3 * images + 2), evened(images), rtol=1e-4, atol=1e-5)
    assert torch.equal(evened(torch.ones(1, 1, 8, 8)), torch.zeros(1, 1, 8, 8))


def test_a_view_from_nearer_is_the_middle_as_large_as_the_picture() -> None:
    ramp = torch.linspace(-1, 1, 100).expand(1, 1, 60, 100)
    near = from_nearer(ramp)
    assert near.shape == ramp.shape
    assert float(near.max()) == pytest.approx(0.9, abs=0.02)


def test_a_pair_is_listed_once_with_its_highest_cosine() -> None:
    first = Neighbours(np.array([[0.9], [0.7], [0.2]]), np.array([[1], [0], [0]]), True)
    second = Neighbours(np.array([[0.1], [0.8], [0.6]]), np.array([[2], [2], [1]]), True)
    found = candidate_pairs([first, second], 0.5)
    assert found.places.tolist() == [[0, 1], [1, 2]]
    np.testing.assert_allclose(found.cosine, [0.9, 0.8])
    assert np.isnan(found.correlation).all()
    assert candidate_pairs([first], 0.95).places.shape == (0, 2)


def test_a_picture_that_cannot_be_read_any_more_is_no_copy() -> None:
    picture = torch.rand(1, 70, 70, generator=torch.Generator().manual_seed(0))
    pairs = Pairs(np.array([[0, 1], [0, 2]]), np.ones(2, np.float32), np.full(2, np.nan))
    found = looked_at(pairs, lambda index: None if index == 1 else picture)
    assert np.isnan(found.correlation[0])
    assert found.correlation[1] == pytest.approx(1.0, abs=1e-4)


def test_planted_copies_are_found_among_pictures_of_their_kind(
    pictures: list[Image.Image],
) -> None:
    number = len(pictures)
    changes = [cropped, brighter, compressed]
    origin = list(range(0, number, 7))
    planted = [changes[n % 3](pictures[place]) for n, place in enumerate(origin)]
    images = torch.stack([tensor(one) for one in [*pictures, *planted]])
    torch.manual_seed(0)
    encoder = create_backbone("convnextv2_atto", in_chans=1).eval()
    with torch.no_grad():
        views = {
            name: torch.cat([view(part, None) for part in ((images - 0.5) / 0.25).split(32)])
            for name, view in copy_views(encoder).items()
            if callable(view)
        }
    white = Whitening.of(views["even"])
    even, closer = (F.normalize(white(views[name]), dim=1) for name in ("even", "closer"))
    index = Index(even)
    near = [index.nearest(view, 10) for view in (even, closer)]
    pairs = looked_at(candidate_pairs(near, 0.4), lambda place: images[place])
    found = {tuple(pair) for pair in pairs.places[pairs.correlation >= 0.7].tolist()}
    expected = {(place, number + n) for n, place in enumerate(origin)}
    assert len(found & expected) >= 0.8 * len(expected)
    assert len(found - expected) <= 0.05 * len(expected)
