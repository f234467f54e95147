# mypy: disallow-untyped-defs=False
"""Triton's side of triton_depthwise.py; the one module that imports Triton."""

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]


@triton.jit
def source_cells(where, place, cell, tap, rows, columns, SIDE, SIZE):
    """Number of the cell that each of a patch's cells sees through a tap, and if it exists."""
    y = place // columns * SIDE + cell // SIDE + tap // SIZE - SIZE // 2
    x = place % columns * SIDE + cell % SIDE + tap % SIZE - SIZE // 2
    inside = (y >= 0) & (y < rows * SIDE) & (x >= 0) & (x < columns * SIDE)
    inside = inside & (cell < SIDE * SIDE)
    k = tl.load(where + y // SIDE * columns + x // SIDE, mask=inside, other=-1)
    return (k * SIDE + y % SIDE) * SIDE + x % SIDE, inside & (k >= 0)


@triton.jit
def convolve_kernel(
    blocks, where, places, taps, bias, output, visible, rows, columns, channels,
    SIDE: tl.constexpr, SIZE: tl.constexpr,
    ACCURATE: tl.constexpr, HAS_BIAS: tl.constexpr,
    CELLS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Write the outputs of one patch's cells, for some channels."""
    patch, image = tl.program_id(0), tl.program_id(0) // visible
    cell = tl.program_id(1) * CELLS + tl.arange(0, CELLS)
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    is_channel = channel < channels
    place = tl.load(places + patch)
    where += image * rows * columns
    first = blocks + image.to(tl.int64) * visible * SIDE * SIDE * channels
    total = tl.zeros((CELLS, CHANNELS), dtype=ACCURATE)
    if HAS_BIAS:
        start = tl.load(bias + channel, mask=is_channel, other=0)
        total += start.to(ACCURATE)[None, :]
    for tap in range(SIZE * SIZE):
        source, exists = source_cells(where, place, cell, tap, rows, columns, SIDE, SIZE)
        weight = tl.load(taps + tap * channels + channel, mask=is_channel, other=0)
        values = tl.load(
            first + source[:, None] * channels + channel[None, :],
            mask=exists[:, None] & is_channel[None, :],
            other=0,
        )
        total += values.to(ACCURATE) * weight.to(ACCURATE)[None, :]
    own = patch.to(tl.int64) * SIDE * SIDE + cell
    tl.store(
        output + own[:, None] * channels + channel[None, :],
        total,
        mask=(cell < SIDE * SIDE)[:, None] & is_channel[None, :],
    )


@triton.jit
def correlate_kernel(
    blocks, where, places, grad, sums, patches, visible, rows, columns, channels, splits,
    SIDE: tl.constexpr, SIZE: tl.constexpr,
    ACCURATE: tl.constexpr, CELLS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Write one tap's gradient, or the bias's, summed over a share of the patches."""
    tap, split = tl.program_id(0), tl.program_id(2)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    is_channel = channel < channels
    total = tl.zeros((CHANNELS,), dtype=ACCURATE)
    for patch in range(split, patches, splits):
        image = patch // visible
        place = tl.load(places + patch)
        for start in range(0, SIDE * SIDE, CELLS):
            cell = start + tl.arange(0, CELLS)
            own = patch * SIDE * SIDE + cell
            mask = (cell < SIDE * SIDE)[:, None] & is_channel[None, :]
            offsets = own.to(tl.int64)[:, None] * channels + channel[None, :]
            product = tl.load(grad + offsets, mask=mask, other=0).to(ACCURATE)
            if tap < SIZE * SIZE:  # the last program sums the gradient itself, for the bias
                source, exists = source_cells(
                    where + image * rows * columns, place, cell, tap, rows, columns, SIDE, SIZE
                )
                source = image * visible * SIDE * SIDE + source
                values = tl.load(
                    blocks + source.to(tl.int64)[:, None] * channels + channel[None, :],
                    mask=exists[:, None] & is_channel[None, :],
                    other=0,
                )
                product *= values.to(ACCURATE)
            total += tl.sum(product, axis=0)
    index = (split * (SIZE * SIZE + 1) + tap) * channels + channel
    tl.store(sums + index, total, mask=is_channel)
