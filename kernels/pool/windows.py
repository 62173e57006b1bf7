"""The kernels of the pools: every input position takes what its windows give, so that nothing is written twice.

A program has ``BLOCK_K`` targets of a tile of positions and channels of one sample, a tile of three axes: what has no
target axis (winners, inputs, scales, the weights of an average) is read or made once for all of its targets. The
innermost axis of the tile is the one that is innermost in memory: the channels where ``LAST``, else the positions.
The positions of a map are one axis, with one stride. Missing spatial axes come first and have size 1. Offsets are
64-bit; one sample has less than 2^31 positions.

Along an axis the windows that can hold position ``i`` are those from ``first`` to ``last``:
``o stride - padding + j dilation = i`` for a tap ``j``. For an adaptive pool they are those with
``floor(o inputs / outputs) <= i < ceil((o + 1) inputs / outputs)``. The op of a max-pool does not know its windows,
only each output's winner: :func:`fastlrp.kernels.pool.winners.span_kernel` finds, along each axis and for each
coordinate, the first and the last output that has a winner there. With a pool's own winners those are no more than the
windows that hold it, and any others are treated as they should be, if slowly.
"""

from __future__ import annotations

import triton
import triton.language as tl

NOWHERE = -(2**30)
"""What :func:`span_kernel` finds in its table where nothing has been noted."""

SIZES = ("targets", "total", *(f"{name}_{axis}" for name in "nm" for axis in "zyx"))
"""Arguments of the kernels for which Triton shall not compile anew."""


@triton.jit
def along(t, INNER: tl.constexpr):
    """A vector along the innermost axis of the tile, or along the one before it."""
    return t[None, None, :] if INNER else t[None, :, None]


@triton.jit
def tile_of(
    targets,
    channels,
    positions,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    LAST: tl.constexpr,
):
    """The program's sample, 64-bit, and its targets, channels and positions; programs with other targets are next."""
    program = tl.program_id(0)
    blocks = tl.cdiv(targets, BLOCK_K)
    k = (program % blocks) * BLOCK_K + tl.arange(0, BLOCK_K)[:, None, None]
    program = program // blocks
    blocks = tl.cdiv(channels, BLOCK_C)
    c = (program % blocks) * BLOCK_C + along(tl.arange(0, BLOCK_C), LAST)
    program = program // blocks
    blocks = tl.cdiv(positions, BLOCK_P)
    p = (program % blocks) * BLOCK_P + along(tl.arange(0, BLOCK_P), not LAST)
    return (program // blocks).to(tl.int64), k, c, p


@triton.jit
def flat_index(z, y, x, size_y, size_x):
    """Number of a position, 64-bit because strides multiply it."""
    return ((z * size_y + y) * size_x + x).to(tl.int64)


@triton.jit
def _windows(i, m, kernel, stride, padding, dilation):
    """First and last of ``m`` windows along an axis that can hold ``i``; with a dilation not all between them do."""
    reach = i + padding
    first = (tl.maximum(reach - dilation * (kernel - 1), 0) + stride - 1) // stride
    return first, tl.minimum(reach // stride, m - 1)


@triton.jit
def _holds(o, last, i, stride, padding, dilation):
    """Whether window ``o``, which is not before the first one, holds ``i``."""
    return (o <= last) & ((i + padding - o * stride) % dilation == 0)


@triton.jit
def _adaptive_windows(i, n, m):
    wide = i.to(tl.int64)
    return (wide * m // n).to(tl.int32), (((wide + 1) * m + n - 1) // n - 1).to(tl.int32)


@triton.jit
def _extent(o, n, m, kernel, stride, padding, ADAPTIVE: tl.constexpr, COUNT_PADDING: tl.constexpr):
    """How many entries window ``o`` of an average counts along an axis, at least 1."""
    if ADAPTIVE:
        wide = o.to(tl.int64)
        extent = (((wide + 1) * n + m - 1) // m - wide * n // m).to(tl.int32)
    else:
        start = o * stride - padding
        end = tl.minimum(start + kernel, n + padding)
        extent = end - start if COUNT_PADDING else tl.minimum(end, n) - tl.maximum(start, 0)
    return tl.maximum(extent, 1)


@triton.jit(do_not_specialize=SIZES)
def average_kernel(
    flow,  # F, (B, K, C, m_z m_y m_x)
    scale,  # (B, C, m_z m_y m_x) or None
    out,  # (B, K, C, n_z n_y n_x)
    targets,
    channels,
    positions,
    n_z,
    n_y,
    n_x,
    m_z,
    m_y,
    m_x,
    flow_b,
    flow_k,
    flow_c,
    flow_p,
    scale_b,
    scale_c,
    scale_p,
    out_b,
    out_k,
    out_c,
    out_p,
    kernel_z,
    kernel_y,
    kernel_x,
    stride_z,
    stride_y,
    stride_x,
    padding_z,
    padding_y,
    padding_x,
    most_z,  # how many windows hold a position, at most
    most_y,
    most_x,
    divisor,
    ADAPTIVE: tl.constexpr,
    COUNT_PADDING: tl.constexpr,
    OVERRIDE: tl.constexpr,  # divide by divisor
    LAST: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """``out[i] = sum of F[o] scale[o] / count(o)`` over the windows ``o`` that hold ``i``."""
    b, k, c, p = tile_of(targets, channels, positions, BLOCK_K, BLOCK_C, BLOCK_P, LAST)
    z, y, x = p // (n_y * n_x), p // n_x % n_y, p % n_x
    inside = (k < targets) & (c < channels) & (p < positions)
    if ADAPTIVE:
        first_z, last_z = _adaptive_windows(z, n_z, m_z)
        first_y, last_y = _adaptive_windows(y, n_y, m_y)
        first_x, last_x = _adaptive_windows(x, n_x, m_x)
    else:
        first_z, last_z = _windows(z, m_z, kernel_z, stride_z, padding_z, 1)
        first_y, last_y = _windows(y, m_y, kernel_y, stride_y, padding_y, 1)
        first_x, last_x = _windows(x, m_x, kernel_x, stride_x, padding_x, 1)
    flow_start = flow + b * flow_b + k.to(tl.int64) * flow_k + c.to(tl.int64) * flow_c
    share = 1.0 / divisor
    total = tl.zeros((BLOCK_K, BLOCK_P if LAST else BLOCK_C, BLOCK_C if LAST else BLOCK_P), dtype=tl.float32)
    for step_z in range(0, most_z):
        o_z = first_z + step_z
        count_z = _extent(o_z, n_z, m_z, kernel_z, stride_z, padding_z, ADAPTIVE, COUNT_PADDING)
        for step_y in range(0, most_y):
            o_y = first_y + step_y
            count_y = _extent(o_y, n_y, m_y, kernel_y, stride_y, padding_y, ADAPTIVE, COUNT_PADDING)
            for step_x in range(0, most_x):
                o_x = first_x + step_x
                count_x = _extent(o_x, n_x, m_x, kernel_x, stride_x, padding_x, ADAPTIVE, COUNT_PADDING)
                window = (o_z <= last_z) & (o_y <= last_y) & (o_x <= last_x)
                o = flat_index(o_z, o_y, o_x, m_y, m_x)
                f = tl.load(flow_start + o * flow_p, mask=inside & window, other=0.0).to(tl.float32)
                weight = share if OVERRIDE else 1.0 / (count_z * count_y * count_x)
                if scale is not None:
                    at = b * scale_b + c.to(tl.int64) * scale_c + o * scale_p
                    there = (c < channels) & (p < positions) & window
                    weight = tl.load(scale + at, mask=there, other=0.0).to(tl.float32) * weight
                total += f * weight
    place = b * out_b + k.to(tl.int64) * out_k + c.to(tl.int64) * out_c + p.to(tl.int64) * out_p
    tl.store(out + place, total.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=SIZES)
def ties_kernel(
    flow,  # F, (B, K, C, m_z m_y m_x)
    input,  # (B, C, n_z n_y n_x)
    output,  # (B, C, m_z m_y m_x)
    share,  # (B, C, m_z m_y m_x), float32
    out,  # (B, K, C, n_z n_y n_x)
    targets,
    channels,
    positions,
    n_y,
    n_x,
    m_z,
    m_y,
    m_x,
    flow_b,
    flow_k,
    flow_c,
    flow_p,
    input_b,
    input_c,
    input_p,
    output_b,
    output_c,
    output_p,
    share_b,
    share_c,
    share_p,
    out_b,
    out_k,
    out_c,
    out_p,
    kernel_z,
    kernel_y,
    kernel_x,
    stride_z,
    stride_y,
    stride_x,
    padding_z,
    padding_y,
    padding_x,
    dilation_z,
    dilation_y,
    dilation_x,
    most_z,
    most_y,
    most_x,
    LAST: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """``out[i] = sum of F[o] share[o]`` over the windows ``o`` that hold ``i`` and whose maximum is ``input[i]``."""
    b, k, c, p = tile_of(targets, channels, positions, BLOCK_K, BLOCK_C, BLOCK_P, LAST)
    z, y, x = p // (n_y * n_x), p // n_x % n_y, p % n_x
    there = (c < channels) & (p < positions)
    first_z, last_z = _windows(z, m_z, kernel_z, stride_z, padding_z, dilation_z)
    first_y, last_y = _windows(y, m_y, kernel_y, stride_y, padding_y, dilation_y)
    first_x, last_x = _windows(x, m_x, kernel_x, stride_x, padding_x, dilation_x)
    place = b * input_b + c.to(tl.int64) * input_c + p.to(tl.int64) * input_p
    entry = tl.load(input + place, mask=there, other=0.0)
    flow_start = flow + b * flow_b + k.to(tl.int64) * flow_k + c.to(tl.int64) * flow_c
    total = tl.zeros((BLOCK_K, BLOCK_P if LAST else BLOCK_C, BLOCK_C if LAST else BLOCK_P), dtype=tl.float32)
    for step_z in range(0, most_z):
        o_z = first_z + step_z
        held_z = _holds(o_z, last_z, z, stride_z, padding_z, dilation_z)
        for step_y in range(0, most_y):
            o_y = first_y + step_y
            held_y = _holds(o_y, last_y, y, stride_y, padding_y, dilation_y)
            for step_x in range(0, most_x):
                o_x = first_x + step_x
                held = held_z & held_y & _holds(o_x, last_x, x, stride_x, padding_x, dilation_x) & there
                o = flat_index(o_z, o_y, o_x, m_y, m_x)
                at = b * output_b + c.to(tl.int64) * output_c + o * output_p
                wins = held & (tl.load(output + at, mask=held, other=0.0) == entry)
                at = b * share_b + c.to(tl.int64) * share_c + o * share_p
                weight = tl.load(share + at, mask=held, other=0.0)
                # Not only where it wins: a mask that differs from channel to channel would make the load a narrow one.
                f = tl.load(flow_start + o * flow_p, mask=held & (k < targets), other=0.0).to(tl.float32)
                total += tl.where(wins, f * weight, 0.0)
    place = b * out_b + k.to(tl.int64) * out_k + c.to(tl.int64) * out_c + p.to(tl.int64) * out_p
    tl.store(out + place, total.to(out.dtype.element_ty), mask=there & (k < targets))


@triton.jit(do_not_specialize=SIZES)
def shares_kernel(
    input,  # (B, C, n_z n_y n_x)
    output,  # (B, C, m_z m_y m_x)
    scale,  # (B, C, m_z m_y m_x) or None
    share,  # (B, C, m_z m_y m_x), float32
    channels,
    positions,
    n_z,
    n_y,
    n_x,
    m_y,
    m_x,
    input_b,
    input_c,
    input_p,
    output_b,
    output_c,
    output_p,
    scale_b,
    scale_c,
    scale_p,
    share_b,
    share_c,
    share_p,
    kernel_z,
    kernel_y,
    kernel_x,
    stride_z,
    stride_y,
    stride_x,
    padding_z,
    padding_y,
    padding_x,
    dilation_z,
    dilation_y,
    dilation_x,
    LAST: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """``share[o] = scale[o]`` divided among the entries of window ``o`` that equal its maximum."""
    b, _, c, p = tile_of(1, channels, positions, 1, BLOCK_C, BLOCK_P, LAST)
    z, y, x = p // (m_y * m_x), p // m_x % m_y, p % m_x
    there = (c < channels) & (p < positions)
    place = b * output_b + c.to(tl.int64) * output_c + p.to(tl.int64) * output_p
    maximum = tl.load(output + place, mask=there, other=0.0)
    count = tl.zeros((1, BLOCK_P if LAST else BLOCK_C, BLOCK_C if LAST else BLOCK_P), dtype=tl.int32)
    start = input + b * input_b + c.to(tl.int64) * input_c
    for tap_z in range(0, kernel_z):
        i_z = z * stride_z - padding_z + tap_z * dilation_z
        for tap_y in range(0, kernel_y):
            i_y = y * stride_y - padding_y + tap_y * dilation_y
            for tap_x in range(0, kernel_x):
                i_x = x * stride_x - padding_x + tap_x * dilation_x
                inside = (i_z >= 0) & (i_z < n_z) & (i_y >= 0) & (i_y < n_y) & (i_x >= 0) & (i_x < n_x) & there
                i = flat_index(i_z, i_y, i_x, n_y, n_x)
                entry = tl.load(start + i * input_p, mask=inside, other=0.0)
                count += (inside & (entry == maximum)).to(tl.int32)
    whole = 1.0
    if scale is not None:
        place = b * scale_b + c.to(tl.int64) * scale_c + p.to(tl.int64) * scale_p
        whole = tl.load(scale + place, mask=there, other=0.0).to(tl.float32)
    place = b * share_b + c.to(tl.int64) * share_c + p.to(tl.int64) * share_p
    tl.store(share + place, whole / tl.maximum(count, 1), mask=there)
