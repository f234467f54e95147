"""How many patches stay visible, and which."""

from __future__ import annotations

import naive
import pytest
import torch

from fcmae.errors import ConfigError
from fcmae.model.masking import (
    draw_visible,
    effective_mask_ratio,
    hidden_from_visible,
    is_masked_from_visible,
    num_visible_patches,
)


@pytest.mark.parametrize(
    ("num_patches", "mask_ratio", "visible"),
    [
        (49, 0.6, 19),  # the paper's setting: 30 hidden
        (49, 0.1, 44),
        (49, 0.2, 39),
        (49, 0.3, 34),
        (49, 0.4, 29),
        (49, 0.5, 24),
        (49, 0.7, 14),
        (49, 0.75, 12),
        (49, 0.8, 9),
        (49, 0.9, 4),
        (100, 0.9, 10),  # int(100 * (1 - 0.9)) is 9
        (50, 0.9, 5),  # and this one 4
        (25, 0.8, 5),
        (100, 0.55, 45),
        (4, 0.6, 1),
        (9, 0.6, 3),
        (16, 0.6, 6),
        (2, 0.5, 1),
        (3, 0.66, 1),
    ],
)
def test_number_of_visible_patches_is_the_floor(
    num_patches: int, mask_ratio: float, visible: int
) -> None:
    assert num_visible_patches(num_patches, mask_ratio) == visible
    assert effective_mask_ratio(num_patches, mask_ratio) == pytest.approx(1 - visible / num_patches)


def test_number_of_visible_patches_equals_exact_arithmetic_everywhere() -> None:
    checked = 0
    for num_patches in range(2, 257):
        for percent in range(1, 100):
            expected = naive.num_visible_patches(num_patches, f"0.{percent:02d}")
            if expected:
                assert num_visible_patches(num_patches, percent / 100) == expected
                checked += 1
            else:
                with pytest.raises(ConfigError, match="leaves none visible"):
                    num_visible_patches(num_patches, percent / 100)
    assert checked > 20_000


@pytest.mark.parametrize(
    ("num_patches", "mask_ratio", "message"),
    [
        (49, 0.0, "mask.ratio: 0.0 of 49 patches leaves none hidden; expected a ratio above 0"),
        (49, 1e-9, "mask.ratio: 1e-09 of 49 patches leaves none hidden"),
        (49, 1.0, "mask.ratio: 1.0 of 49 patches leaves none visible; expected a ratio above 0"),
        (49, 0.98, "leaves none visible; expected a ratio above 0 and at most 0.979 on this grid"),
        (4, 0.8, "0.8 of 4 patches leaves none visible; expected .* at most 0.75 on this grid"),
        (
            1,
            0.6,
            "1 patch cannot be both visible and hidden; .* larger images or smaller patches",
        ),
        (49, -0.1, "mask.ratio: -0.1 is not a share of the patches; expected a ratio above 0"),
        (49, 1.5, "mask.ratio: 1.5 is not a share of the patches"),
        (49, 60, "mask.ratio: 60 is not a share of the patches"),
        (49, float("nan"), "mask.ratio: nan is not a share of the patches"),
    ],
)
def test_a_ratio_that_leaves_nothing_to_see_or_to_guess_is_refused(
    num_patches: int, mask_ratio: float, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        num_visible_patches(num_patches, mask_ratio)


@pytest.mark.parametrize("num_patches", [2, 3, 4, 6, 7, 49, 50, 144, 999, 1000, 4096])
def test_the_highest_ratio_that_the_message_allows_is_allowed(num_patches: int) -> None:
    with pytest.raises(ConfigError) as refusal:
        num_visible_patches(num_patches, 1.0)
    allowed = float(str(refusal.value).split("at most ")[1].split()[0])
    assert num_visible_patches(num_patches, allowed) >= 1
    assert allowed == pytest.approx(1 - 1 / num_patches, abs=1e-3)


def test_each_image_draws_its_own_sorted_distinct_patches() -> None:
    visible = draw_visible(40, 12, 0.6, torch.Generator().manual_seed(0))
    assert visible.shape == (40, 4)
    assert visible.dtype == torch.int64
    assert visible.diff(dim=1).gt(0).all()
    assert visible.min() == 0
    assert visible.max() == 11
    assert len({tuple(row) for row in visible.tolist()}) > 30


def test_every_patch_and_every_pair_is_visible_equally_often() -> None:
    images, patches, kept = 20_000, 7, 3
    visible = draw_visible(images, patches, 0.5, torch.Generator().manual_seed(3))
    shown = (~is_masked_from_visible(visible, patches)).double()
    together = shown.T @ shown
    for pairs, probability in (
        (together.diagonal(), kept / patches),
        (
            together[~torch.eye(patches, dtype=torch.bool)],
            kept * (kept - 1) / patches / (patches - 1),
        ),
    ):
        deviation = (images * probability * (1 - probability)) ** 0.5
        assert (pairs - images * probability).abs().max() < 4.5 * deviation


def test_one_generator_state_gives_one_draw() -> None:
    first, again, other = (
        draw_visible(3, 49, 0.6, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_generator_leaves_the_global_one_alone_and_none_uses_it() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(8)
        state = torch.get_rng_state()
        draw_visible(2, 49, 0.6, torch.Generator().manual_seed(1))
        assert torch.equal(torch.get_rng_state(), state)
        first = draw_visible(2, 49, 0.6)
        torch.manual_seed(8)
        assert torch.equal(draw_visible(2, 49, 0.6), first)


def test_is_masked_is_true_exactly_where_a_patch_is_not_visible() -> None:
    is_masked = is_masked_from_visible(torch.tensor([[0, 3], [4, 1]]), 5)
    assert is_masked.tolist() == [
        [False, True, True, False, True],
        [True, False, True, True, False],
    ]


def test_hidden_patches_are_the_others_in_order() -> None:
    hidden = hidden_from_visible(torch.tensor([[3, 0], [4, 2]]), 6)
    assert hidden.tolist() == [[1, 2, 4, 5], [0, 1, 3, 5]]
