"""The light decoder."""

from __future__ import annotations

import naive
import pytest
import torch
from backend_contract import randomize
from comparison import assert_relative, assert_same_bits

from fcmae.model.decoder import INIT_STD, Decoder


def small_decoder(depth: int = 1) -> Decoder:
    decoder = Decoder(encoder_dim=5, decoder_dim=6, depth=depth, cell_size=4, in_chans=3)
    return randomize(decoder.double(), seed=2)


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("side", [1, 2])
def test_prediction_equals_the_naive_reference(depth: int, side: int) -> None:
    decoder = small_decoder(depth)
    rng = torch.Generator().manual_seed(4)
    visible = torch.tensor([[1, 2], [0, 5]])
    features = torch.randn(2, 2, side, side, 5, generator=rng, dtype=torch.float64)
    maps = torch.zeros(2, 5, 2 * side, 3 * side, dtype=torch.float64)
    is_masked = torch.ones(2, 1, 2 * side, 3 * side, dtype=torch.bool)
    for n in range(2):
        for k in range(2):
            row, column = divmod(visible[n, k].item(), 3)
            area = (slice(row * side, (row + 1) * side), slice(column * side, (column + 1) * side))
            maps[n, :, area[0], area[1]] = features[n, k].permute(2, 0, 1)
            is_masked[n, 0, area[0], area[1]] = False
    cells = decoder(maps, is_masked)
    assert cells.shape == (2, 2 * side, 3 * side, 48)
    expected = naive.predict(decoder, features, visible, (2, 3), 4)
    pixels = expected.view(2, 2, 3, side, 4, side, 4, 3).permute(0, 1, 3, 2, 5, 4, 6, 7)
    assert_relative(cells, pixels.reshape(cells.shape), 1e-10)


@pytest.mark.parametrize("grid", [(3, 3), (4, 2), (2, 3)])
def test_gradients_are_those_of_the_layers_as_timm_runs_them(grid: tuple[int, int]) -> None:
    decoder = small_decoder(depth=2)
    rng = torch.Generator().manual_seed(4)
    features = torch.randn(2, 5, *grid, generator=rng, dtype=torch.float64).requires_grad_()
    is_masked = torch.rand(2, 1, *grid, generator=rng) < 0.5
    weights = torch.randn(2, *grid, 48, generator=rng, dtype=torch.float64)

    def plain() -> torch.Tensor:
        x = torch.where(is_masked, decoder.mask_token, decoder.projection(features))
        return decoder.head(decoder.blocks(x)).permute(0, 2, 3, 1)

    wanted = [features, *decoder.parameters()]
    expected = torch.autograd.grad((plain() * weights).sum(), wanted)
    found = torch.autograd.grad((decoder(features, is_masked) * weights).sum(), wanted)
    for mine, theirs in zip(found, expected, strict=True):
        assert_relative(mine, theirs, 1e-10)


@pytest.mark.parametrize("value", [1e6, float("nan")])
def test_features_at_hidden_cells_are_ignored_bit_for_bit(value: float) -> None:
    decoder = small_decoder().float()
    rng = torch.Generator().manual_seed(4)
    features = torch.randn(2, 5, 2, 3, generator=rng)
    is_masked = torch.rand(2, 1, 2, 3, generator=rng) < 0.5
    other = torch.where(is_masked, value, features)
    assert_same_bits(decoder(other, is_masked), decoder(features, is_masked))


def test_the_mask_token_stands_at_hidden_cells() -> None:
    decoder = small_decoder(depth=0)
    hidden = decoder(torch.randn(1, 5, 1, 2, dtype=torch.float64), torch.ones(1, 1, 1, 2).bool())
    assert_relative(
        hidden, decoder.head(decoder.mask_token).view(1, 1, 1, -1).expand(1, 1, 2, -1), 1e-12
    )


def test_weights_are_drawn_once_with_the_declared_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    draw = torch.nn.init.trunc_normal_

    def recorded(tensor: torch.Tensor, *, std: float) -> torch.Tensor:
        assert std == INIT_STD == 0.02
        drawn.append(tensor.data_ptr())
        return draw(tensor, std=std)

    monkeypatch.setattr("torch.nn.init.trunc_normal_", recorded)
    decoder = Decoder(encoder_dim=64, decoder_dim=256, depth=2, cell_size=8, in_chans=3)
    weights = {n: p for n, p in decoder.named_parameters() if p.dim() > 1}
    assert sorted(drawn) == sorted(p.data_ptr() for p in weights.values())
    for name, weight in weights.items():
        assert weight.std().item() == pytest.approx(0.02, rel=0.2), name
        assert weight.abs().max() < 0.13, name
    for name, parameter in decoder.named_parameters():
        if parameter.dim() == 1:
            start = 1.0 if name.endswith("norm.weight") else 0.0
            assert parameter.eq(start).all(), name
