# mypy: disallow-untyped-defs=False
"""Triton's side of depthwise_triton.py and activation_triton.py; the one that imports Triton.

Rows are the cells of all visible patches, one after the other: N * K * m * m of them. Channels are
constants, so that their greatest power of two is known and values are read 16 bytes at a time.
"""

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]


@triton.jit
def places_of(row, is_row, places, visible, columns, SIDE):
    """Image, y and x of cells on their maps."""
    patch, cell = row // (SIDE * SIDE), row % (SIDE * SIDE)
    place = tl.load(places + patch, mask=is_row, other=0)
    y = place // columns * SIDE + cell // SIDE
    x = place % columns * SIDE + cell % SIDE
    return patch // visible, y, x


@triton.jit
def rows_at(where, image, y, x, is_row, visible, rows, columns, SIDE):
    """Rows that lie at these places, and whether there are any: not outside, not hidden."""
    inside = is_row & (y >= 0) & (y < rows * SIDE) & (x >= 0) & (x < columns * SIDE)
    k = tl.load(where + (image * rows + y // SIDE) * columns + x // SIDE, mask=inside, other=-1)
    return ((image * visible + k) * SIDE + y % SIDE) * SIDE + x % SIDE, inside & (k >= 0)


@triton.jit
def convolve_kernel(
    blocks, where, places, taps, bias, output, count, visible, rows, columns,
    channels: tl.constexpr, SIDE: tl.constexpr, SIZE: tl.constexpr,
    ACCURATE: tl.constexpr, INDEX: tl.constexpr, HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Write some rows of the output, for some channels."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    is_row, is_channel = row < count, channel < channels
    image, y, x = places_of(row, is_row, places, visible, columns, SIDE)
    total = tl.zeros((ROWS, CHANNELS), dtype=ACCURATE)
    if HAS_BIAS:
        start = tl.load(bias + channel, mask=is_channel, other=0)
        total += start.to(ACCURATE)[None, :]
    for down in range(SIZE):
        for right in tl.static_range(SIZE):
            source, exists = rows_at(
                where, image, y + down - SIZE // 2, x + right - SIZE // 2, is_row,
                visible, rows, columns, SIDE,
            )  # fmt: skip
            tap = taps + (down * SIZE + right) * channels
            weight = tl.load(tap + channel, mask=is_channel, other=0)
            values = tl.load(
                blocks + source.to(INDEX)[:, None] * channels + channel[None, :],
                mask=exists[:, None] & is_channel[None, :],
                other=0,
            )
            total += values.to(ACCURATE) * weight.to(ACCURATE)[None, :]
    tl.store(
        output + row.to(INDEX)[:, None] * channels + channel[None, :],
        total,
        mask=is_row[:, None] & is_channel[None, :],
    )


@triton.jit
def correlate_kernel(
    blocks, where, places, grad, sums, count, visible, rows, columns, splits,
    channels: tl.constexpr, SIDE: tl.constexpr, SIZE: tl.constexpr,
    ACCURATE: tl.constexpr, INDEX: tl.constexpr,
    TAPS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Write the gradients of one line of taps, summed over a share of the rows.

    The tap after the last of the line sees 1 everywhere: its gradient is the bias's.
    """
    down, split = tl.program_id(0), tl.program_id(2)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    is_channel = channel < channels
    right = tl.arange(0, TAPS)
    is_tap = right < SIZE
    total = tl.zeros((TAPS, ROWS, CHANNELS), dtype=ACCURATE)
    for start in range(split * ROWS, count, splits * ROWS):
        row = start + tl.arange(0, ROWS)
        is_row = row < count
        image, y, x = places_of(row, is_row, places, visible, columns, SIDE)
        gradient = tl.load(
            grad + row.to(INDEX)[:, None] * channels + channel[None, :],
            mask=is_row[:, None] & is_channel[None, :],
            other=0,
        ).to(ACCURATE)
        source, exists = rows_at(
            where, image[None, :], (y + down - SIZE // 2)[None, :],
            x[None, :] + right[:, None] - SIZE // 2, is_row[None, :] & is_tap[:, None],
            visible, rows, columns, SIDE,
        )  # fmt: skip
        values = tl.load(
            blocks + source.to(INDEX)[:, :, None] * channels + channel[None, None, :],
            mask=exists[:, :, None] & is_channel[None, None, :],
            other=0,
        ).to(ACCURATE)
        is_bias = (right == SIZE)[:, None, None]
        total += gradient[None, :, :] * tl.where(is_bias, 1.0, values)
    index = ((split * SIZE + down) * TAPS + right)[:, None] * channels + channel[None, :]
    tl.store(sums + index, tl.sum(total, axis=1), mask=is_channel[None, :])


@triton.jit
def gelu(x):
    """The exact GELU."""
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def gelu_sums_kernel(
    features, grad, first, second, rows, splits, channels: tl.constexpr,
    HAS_GRAD: tl.constexpr, INDEX: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Sum over a share of a group's rows, by channel.

    Without a gradient the squares of GELU; with one its products with GELU, and itself.
    """
    group, split = tl.program_id(2).to(INDEX), tl.program_id(1)
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    is_channel = channel < channels
    one = tl.zeros((ROWS, CHANNELS), dtype=tl.float32)
    other = tl.zeros((ROWS, CHANNELS), dtype=tl.float32)
    for start in range(split * ROWS, rows, splits * ROWS):
        row = start + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & is_channel[None, :]
        offsets = (group * rows + row)[:, None] * channels + channel[None, :]
        value = gelu(tl.load(features + offsets, mask=mask, other=0).to(tl.float32))
        if HAS_GRAD:
            gradient = tl.load(grad + offsets, mask=mask, other=0).to(tl.float32)
            one += gradient * value
            other += gradient
        else:
            one += value * value
    index = (group * splits + split) * channels + channel
    tl.store(first + index, tl.sum(one, axis=0), mask=is_channel)
    if HAS_GRAD:
        tl.store(second + index, tl.sum(other, axis=0), mask=is_channel)


@triton.jit
def gelu_apply_kernel(
    features, grad, scale, shift, output, rows, channels: tl.constexpr,
    HAS_GRAD: tl.constexpr, INDEX: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Without a gradient GELU * scale + shift; with one its gradient by the features.

    Then `scale` belongs to the gradient and `shift`, by group as well, to GELU.
    """
    group = tl.program_id(2).to(INDEX)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    is_channel = channel < channels
    mask = (row < rows)[:, None] & is_channel[None, :]
    offsets = (group * rows + row)[:, None] * channels + channel[None, :]
    x = tl.load(features + offsets, mask=mask, other=0).to(tl.float32)
    factor = tl.load(scale + group * channels + channel, mask=is_channel, other=0)[None, :]
    if HAS_GRAD:
        gradient = tl.load(grad + offsets, mask=mask, other=0).to(tl.float32)
        pull = tl.load(shift + group * channels + channel, mask=is_channel, other=0)[None, :]
        inner = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
        density = tl.exp(-0.5 * x * x) * 0.3989422804014327
        result = (gradient * factor + x * inner * pull) * (inner + x * density)
    else:
        constant = tl.load(shift + channel, mask=is_channel, other=0).to(tl.float32)[None, :]
        result = gelu(x) * factor + constant
    tl.store(output + offsets, result, mask=mask)
