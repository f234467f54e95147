"""How alike the features of two encoders are: known cases of CKA, and sites that do not move."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import timm
import torch

from fcmae.errors import DataError
from fcmae.evaluation.health import Drift
from fcmae.evaluation.health.drift import NAME, debiased_cka

RNG = torch.Generator().manual_seed(3)
NAMES = [NAME.format(stage) for stage in range(4)]


def features(number: int, width: int) -> torch.Tensor:
    return torch.randn(number, width, generator=RNG)


def test_features_that_are_turned_shifted_and_scaled_are_the_same() -> None:
    first = features(50, 7)
    turn = torch.linalg.qr(features(7, 7)).Q
    assert debiased_cka(first, first) == pytest.approx(1.0)
    assert debiased_cka(first, 3 * first @ turn + 5) == pytest.approx(1.0, abs=1e-5)


def test_unrelated_features_are_not_alike_however_many_channels_they_have() -> None:
    assert abs(debiased_cka(features(60, 300), features(60, 200))) < 0.1


def test_what_is_half_shared_lies_between() -> None:
    shared = features(400, 5)
    mixed = torch.cat([shared, features(400, 5)], dim=1)
    assert debiased_cka(shared, mixed) == pytest.approx(1 / math.sqrt(2), abs=0.06)


def test_the_estimate_is_that_of_the_sum_over_four_different_sites() -> None:
    first, second = (features(6, width).double() for width in (2, 3))

    def hsic(a: torch.Tensor, b: torch.Tensor) -> float:
        grams = [m @ m.T for m in (a - a.mean(dim=0), b - b.mean(dim=0))]
        total, number = 0.0, 0
        for i, j, q, r in torch.cartesian_prod(*[torch.arange(6)] * 4).tolist():
            if len({i, j, q, r}) == 4:
                k, m = grams
                total += float(k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]))
                number += 1
        return total / number

    expected = hsic(first, second) / math.sqrt(hsic(first, first) * hsic(second, second))
    assert debiased_cka(first, second) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (torch.ones(9, 2), torch.randn(9, 2)),
        (torch.full((9, 2), math.nan), torch.randn(9, 2)),
        (torch.randn(3, 2), torch.randn(3, 2)),
    ],
)
def test_what_says_nothing_is_nan(first: torch.Tensor, second: torch.Tensor) -> None:
    assert math.isnan(debiased_cka(first, second))


def test_an_encoder_is_like_its_start_until_it_moves_and_a_later_process_knows_it(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    encoder = timm.create_model("convnextv2_atto", in_chans=1, num_classes=0)
    images = torch.randn(10, 1, 64, 64, generator=RNG)
    valid = torch.ones(10, 1, 64, 64, dtype=torch.bool)
    valid[:, :, :, :20] = False
    file = tmp_path / "start.safetensors"
    for holes in (None, valid):
        drift = Drift(images, 1, holes, 0.5, file)
        assert drift.measure(encoder) == {}
        drift.remember(encoder)
        assert drift.measure(encoder) == dict.fromkeys(NAMES, 1.0)
    later = Drift(images, 1, valid, 0.5, file)
    later.recall()
    with torch.no_grad():
        for parameter in encoder.stages[2:].parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=RNG))
    found = later.measure(encoder)
    assert [found[name] for name in NAMES[:2]] == [1.0, 1.0]
    assert found[NAMES[2]] < 0.9
    # What lies where there is no data counts for nothing.
    changed = images.clone()
    changed[:, :, :, :4] = 9.0
    far = Drift(changed, 1, valid, 0.5, file)
    far.recall()
    assert far.measure(encoder)[NAMES[0]] > 0.9


@pytest.mark.parametrize("content", [None, b"no tensors"])
def test_a_start_that_is_gone_or_damaged_is_told(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "start.safetensors"
    if content is not None:
        file.write_bytes(content)
    drift = Drift(torch.zeros(4, 1, 64, 64), 1, None, 0.5, file)
    with pytest.raises(DataError, match=r"start.safetensors cannot be read .* not measured any"):
        drift.recall()
