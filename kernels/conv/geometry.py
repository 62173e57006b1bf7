"""Which positions, taps and windows meet in a convolution: what its kernels and launchers share.

Every layer has three spatial axes here; missing ones come first, with size and kernel 1. An axis of a layer is the
constant ``(kernel, stride, padding, dilation, tap step, step, move, back)``, an axis of a pool ``(stride, padding,
windows)``.

Input position ``i`` and tap ``j`` meet the output position ``o`` where ``i + padding = o stride + j dilation``. The
positions with one ``(i + padding) mod stride``, a *phase*, have the same taps ``j = j0 + t (stride / g)``, where ``g``
is the greatest common divisor of stride and dilation, and the ``m``-th of them meets ``o = o0 + m - t (dilation / g)``.
So each phase is a convolution with stride 1, and no tap is visited that does not exist. A transposed layer has one:
``o = i stride - padding + j dilation``. From one position of a phase to the next ``i`` grows by ``step`` and ``o`` by
``move``; from one tap to the next ``j`` grows by ``tap step`` and ``o`` goes ``back``.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def phase_of_axis(number, size, AXES: tl.constexpr, A: tl.constexpr, TRANSPOSED: tl.constexpr):
    """Phase ``number`` of axis ``A``: (first input position, how many, first tap, how many, their output position)."""
    KERNEL: tl.constexpr = AXES[A][0]
    STRIDE: tl.constexpr = AXES[A][1]
    PADDING: tl.constexpr = AXES[A][2]
    DILATION: tl.constexpr = AXES[A][3]
    TAP_STEP: tl.constexpr = AXES[A][4]
    if TRANSPOSED:
        return 0, size, 0, KERNEL, -PADDING
    if STRIDE == 1:
        return 0, size, 0, KERNEL, PADDING
    tap = number % TAP_STEP
    apart = number // TAP_STEP  # above 0: no tap comes here, stride and dilation share a factor
    residue = (tap * DILATION) % STRIDE + apart
    first = (residue + STRIDE - PADDING % STRIDE) % STRIDE
    count = (tl.maximum(size - first, 0) + STRIDE - 1) // STRIDE
    taps = tl.where(apart == 0, (KERNEL - tap + TAP_STEP - 1) // TAP_STEP, 0)
    start = (first + PADDING - tap * DILATION) // STRIDE  # exact where there are taps
    return first, count, tap, taps, start


@triton.jit
def phases_of(number, size_d, size_h, size_w, AXES: tl.constexpr, TRANSPOSED: tl.constexpr):
    """Phase ``number`` of the layer, along each axis; those with the most taps come first."""
    STRIDE_H: tl.constexpr = AXES[1][1]
    STRIDE_W: tl.constexpr = AXES[2][1]
    PHASES_H: tl.constexpr = 1 if TRANSPOSED else STRIDE_H
    PHASES_W: tl.constexpr = 1 if TRANSPOSED else STRIDE_W
    along_d = phase_of_axis(number // (PHASES_H * PHASES_W), size_d, AXES, 0, TRANSPOSED)
    along_h = phase_of_axis(number // PHASES_W % PHASES_H, size_h, AXES, 1, TRANSPOSED)
    along_w = phase_of_axis(number % PHASES_W, size_w, AXES, 2, TRANSPOSED)
    return along_d, along_h, along_w


@triton.jit
def wrapped(value, size, MOST: tl.constexpr):
    """Quotient and remainder of ``value`` by ``size``, where ``0 <= value < size + MOST``; without integer division."""
    small = ((value.to(tl.float32) + 0.5) / size).to(tl.int32)  # exact: both are below 2 MOST
    quotient = tl.where(size > MOST, (value >= size).to(tl.int32), small)
    return quotient, value - quotient * size


@triton.jit
def along(index, phase, AXES: tl.constexpr, A: tl.constexpr):
    """Position ``index`` of a phase: its place in the input, and the output position that its first tap meets."""
    STEP: tl.constexpr = AXES[A][5]
    MOVE: tl.constexpr = AXES[A][6]
    return phase[0] + index * STEP, phase[4] + index * MOVE


@triton.jit
def position_of_row(first, offsets, phase_d, phase_h, phase_w, size_h, size_w, AXES: tl.constexpr, MOST: tl.constexpr):
    """Rows ``first + offsets`` of (sample, position of a phase); offsets are below ``MOST``.

    Returns the sample and the place in the input, 64-bit, and what the first taps meet: the position along each axis.
    """
    count = phase_d[1] * phase_h[1] * phase_w[1]
    sample = first // count
    rest = (first - sample * count).to(tl.int32)
    line = rest // phase_w[1]
    plane = line // phase_h[1]
    carry, w = wrapped(rest - line * phase_w[1] + offsets, phase_w[1], MOST)
    carry, h = wrapped(line - plane * phase_h[1] + carry, phase_h[1], MOST)
    carry, d = wrapped(plane + carry, phase_d[1], MOST)
    in_d, d = along(d, phase_d, AXES, 0)
    in_h, h = along(h, phase_h, AXES, 1)
    in_w, w = along(w, phase_w, AXES, 2)
    return sample + carry, ((in_d * size_h + in_h) * size_w + in_w).to(tl.int64), d, h, w


@triton.jit
def place_of_tap(d, h, w, phase_d, phase_h, phase_w, AXES: tl.constexpr):
    """Tap ``(d, h, w)`` of a phase: its place in the kernel, and how far it goes back along each axis of the output."""
    KERNEL_H: tl.constexpr = AXES[1][0]
    KERNEL_W: tl.constexpr = AXES[2][0]
    STEP_D: tl.constexpr = AXES[0][4]
    STEP_H: tl.constexpr = AXES[1][4]
    STEP_W: tl.constexpr = AXES[2][4]
    BACK_D: tl.constexpr = AXES[0][7]
    BACK_H: tl.constexpr = AXES[1][7]
    BACK_W: tl.constexpr = AXES[2][7]
    place = ((phase_d[2] + d * STEP_D) * KERNEL_H + phase_h[2] + h * STEP_H) * KERNEL_W + phase_w[2] + w * STEP_W
    return place, d * BACK_D, h * BACK_H, w * BACK_W


@triton.jit
def next_tap(d, h, w, phase_d, phase_h, phase_w):
    """The tap after ``(d, h, w)``, and 1 where it is the first one again, else 0."""
    w += 1
    over = (w == phase_w[3]).to(tl.int32)
    w -= over * phase_w[3]
    h += over
    over = (h == phase_h[3]).to(tl.int32)
    h -= over * phase_h[3]
    d += over
    over = (d == phase_d[3]).to(tl.int32)
    return d - over * phase_d[3], h, w, over


@triton.jit
def reached(d, h, w, size_d, size_h, size_w, AXES: tl.constexpr):
    """Whether output positions exist; along an axis with one tap and no padding they always do."""
    ALWAYS_D: tl.constexpr = AXES[0][0] == 1 and AXES[0][2] == 0
    ALWAYS_H: tl.constexpr = AXES[1][0] == 1 and AXES[1][2] == 0
    there = (w >= 0) & (w < size_w)
    if not ALWAYS_H:
        there &= (h >= 0) & (h < size_h)
    if not ALWAYS_D:
        there &= (d >= 0) & (d < size_d)
    return there


@triton.jit
def over_targets(tile, POSITIONS: tl.constexpr, TARGETS: tl.constexpr, COLUMNS: tl.constexpr):
    """(POSITIONS, COLUMNS) of a cache -> (POSITIONS * TARGETS, COLUMNS): each row for all of its targets."""
    if TARGETS == 1:
        return tile
    wide = tl.broadcast_to(tile[:, None, :], (POSITIONS, TARGETS, COLUMNS))
    return tl.reshape(wide, (POSITIONS * TARGETS, COLUMNS))


@triton.jit
def window_place(d, h, w, NUMBER: tl.constexpr, size_d, size_h, size_w, POOL: tl.constexpr):
    """Window ``NUMBER`` of those of a pool that can hold ``(d, h, w)``: its place, 64-bit, and whether it exists."""
    STRIDE_D: tl.constexpr = POOL[0][0]
    STRIDE_H: tl.constexpr = POOL[1][0]
    STRIDE_W: tl.constexpr = POOL[2][0]
    PADDING_D: tl.constexpr = POOL[0][1]
    PADDING_H: tl.constexpr = POOL[1][1]
    PADDING_W: tl.constexpr = POOL[2][1]
    WINDOWS_H: tl.constexpr = POOL[1][2]
    WINDOWS_W: tl.constexpr = POOL[2][2]
    pd = (d + PADDING_D) // STRIDE_D - NUMBER // (WINDOWS_H * WINDOWS_W)
    ph = (h + PADDING_H) // STRIDE_H - NUMBER // WINDOWS_W % WINDOWS_H
    pw = (w + PADDING_W) // STRIDE_W - NUMBER % WINDOWS_W
    there = (pd >= 0) & (pd < size_d) & (ph >= 0) & (ph < size_h) & (pw >= 0) & (pw < size_w)
    return ((pd * size_h + ph) * size_w + pw).to(tl.int64), there


@triton.jit
def arriving(
    relevance,
    row,  # offset of each row: its sample and target, and without a pool the output position of its first tap
    back,  # how many positions the tap goes back
    d,
    h,
    w,
    there,  # whether there is an output position (d, h, w)
    channel,
    is_channel,
    pooled_d,
    pooled_h,
    pooled_w,
    relevance_p,
    POOL: tl.constexpr,
):
    """Relevance at output positions, (rows, channels); where a pool follows, that of the window which holds them."""
    if POOL is None:
        places = (relevance - back * relevance_p) + (row[:, None] + channel[None, :])
    else:
        window, held = window_place(d, h, w, 0, pooled_d, pooled_h, pooled_w, POOL)
        there &= held
        places = relevance + ((row + window * relevance_p)[:, None] + channel[None, :])
    return tl.load(places, mask=there[:, None] & is_channel[None, :], other=0.0)


@triton.jit
def scaled(flow, coefficient):
    """``u F`` in the dtype of ``coefficient``."""
    return (flow.to(tl.float32) * coefficient.to(tl.float32)).to(coefficient.dtype)


@triton.jit
def positive_part(w):
    wide = w.to(tl.float32)
    return tl.where(wide < 0, 0.0, wide).to(w.dtype)


@triton.jit
def negative_part(w):
    wide = w.to(tl.float32)
    return tl.where(wide > 0, 0.0, wide).to(w.dtype)


@triton.jit
def part_of_sign(w, x):
    """W+ where ``x`` is above zero, W- where it is below, else 0."""
    wide = w.to(tl.float32)
    part = tl.where(x > 0, tl.where(wide < 0, 0.0, wide), tl.where(wide > 0, 0.0, wide))
    return tl.where(x == 0, 0.0, part).to(w.dtype)
