"""Relevance through the steps of a recurrent layer, all of them in one launch.

The formulas are those of :func:`fastlrp.reference.recurrence.recurrence_relevance`. A program has a block of targets of
one sample and walks from the last step to the first. Each step has two parts with a barrier behind each: entry by
entry from what arrives to the flows at the gates' sums, which go to memory; then the product of these flows with the
recurrent weight, tile by tile, whose result the next step reads. A projection is one more product in front. States are
float32 and stay in the caches; the weight is read once per step by all targets of a block. Offsets are 64-bit.

The product with the input's weight is one for all steps behind the walk. ``spread`` is a rare rule's
(``bias_factor``): PyTorch composes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastlrp.aten import recurrence as composed
from fastlrp.kernels.compilation import Compilation
from fastlrp.kernels.launch import Launch, matmul_precision, power_of_two
from fastlrp.kernels.rounding import raised

_TARGETS = 16
_BLOCK = 64
"""Columns of a tile."""
_DEPTH = 16
"""Of a product's step."""
_WARPS = 8


@triton.jit
def _numbers(base, row, n, inside, other):
    """``base[row + n]`` of one sample and step, for all targets; ``other`` where there is none."""
    found = other
    if base is not None:
        found = tl.load(base + row + n, mask=inside, other=0.0)[None, :]
    return found


@triton.jit(do_not_specialize=["K", "T"])
def recurrence_kernel(
    relevance,  # (B, K, T, P)
    weight,  # (J H, P)
    entry,  # (B, T, P)
    scale,  # (B, T, P) or None
    carry,  # (B, T, H) or None
    gates,  # (B, T, G, H) or None
    output_entry,  # (B, T, H) or None
    output_scale,  # (B, T, O, H) or None
    reset,  # (B, T, H) or None
    projection,  # (P, H) or None
    arrived,  # (B, K, P) with a projection, else None
    flows,  # out: (B, K, T, J H)
    first,  # in: zeros, out: a, (B, K, P)
    memory,  # in: what flows into the memory from behind, out: into the first memory, (B, K, H)
    K,
    T,
    P,
    H,
    G: tl.constexpr,
    J: tl.constexpr,
    O: tl.constexpr,
    TARGETS: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The walk of ``TARGETS`` targets of one sample."""
    blocks = tl.cdiv(K, TARGETS)
    b = (tl.program_id(0) // blocks).to(tl.int64)
    k = (tl.program_id(0) % blocks) * TARGETS + tl.arange(0, TARGETS)
    is_target = (k < K)[:, None]
    row = (b * K + k)[:, None]
    n = tl.arange(0, BLOCK)
    d = tl.arange(0, DEPTH)
    for back in range(0, T):
        t = T - 1 - back
        at = b * T + t
        if projection is not None:
            for start in range(0, P, BLOCK):
                p = start + n
                inside = is_target & (p < P)[None, :]
                came = tl.load(first + row * P + p[None, :], mask=inside, other=0.0)
                came = came * _numbers(scale, at * P, p, p < P, 1.0)
                r = tl.load(relevance + (row * T + t) * P + p[None, :], mask=inside, other=0.0)
                came += r * _numbers(entry, at * P, p, p < P, 1.0)
                tl.store(arrived + row * P + p[None, :], came, mask=inside)
            tl.debug_barrier()
        for start in range(0, H, BLOCK):
            h = start + n
            is_unit = h < H
            inside = is_target & is_unit[None, :]
            if projection is not None:
                v = tl.zeros((TARGETS, BLOCK), tl.float32)
                for depth in range(0, P, DEPTH):
                    p = depth + d
                    left = tl.load(arrived + row * P + p[None, :], mask=is_target & (p < P)[None, :], other=0.0)
                    place = p.to(tl.int64)[:, None] * H + h[None, :]
                    right = tl.load(projection + place, mask=(p < P)[:, None] & is_unit[None, :], other=0.0)
                    v += tl.dot(raised(left, PRECISION), raised(right, PRECISION), input_precision=PRECISION)
                flow = v * _numbers(output_scale, at * O * H, h, is_unit, 1.0)
                out = v
                if O == 2:
                    out = v * _numbers(output_scale, (at * O + 1) * H, h, is_unit, 1.0)
            else:
                came = tl.load(first + row * P + h[None, :], mask=inside, other=0.0)
                r = tl.load(relevance + (row * T + t) * P + h[None, :], mask=inside, other=0.0)
                flow = r * _numbers(entry, at * P, h, is_unit, 1.0)
                flow += came * _numbers(scale, at * P, h, is_unit, 1.0)
                out = flow
                if output_scale is not None:
                    out = r * _numbers(output_entry, at * H, h, is_unit, 1.0)
                    out += came * _numbers(output_scale, at * H, h, is_unit, 1.0)
            flow += tl.load(memory + row * H + h[None, :], mask=inside, other=0.0)
            to = flows + (row * T + t) * (J * H) + h[None, :]
            for g in tl.static_range(G):
                tl.store(to + g * H, flow * _numbers(gates, (at * G + g) * H, h, is_unit, 1.0), mask=inside)
            if J > G:
                tl.store(to + G * H, out, mask=inside)
            kept = flow * 0.0
            if carry is not None:
                kept = flow * _numbers(carry, at * H, h, is_unit, 1.0)
            tl.store(memory + row * H + h[None, :], kept, mask=inside)
        tl.debug_barrier()
        for start in range(0, P, BLOCK):
            p = start + n
            a = tl.zeros((TARGETS, BLOCK), tl.float32)
            for depth in range(0, J * H, DEPTH):
                j = depth + d
                is_there = j < J * H
                left = tl.load(
                    flows + (row * T + t) * (J * H) + j[None, :], mask=is_target & is_there[None, :], other=0.0
                )
                if reset is not None:
                    u = j - (J - 1) * H
                    again = tl.load(reset + at * H + u, mask=is_there & (u >= 0), other=1.0)
                    left *= again[None, :]
                place = j.to(tl.int64)[:, None] * P + p[None, :]
                right = tl.load(weight + place, mask=is_there[:, None] & (p < P)[None, :], other=0.0)
                a += tl.dot(raised(left, PRECISION), raised(right, PRECISION), input_precision=PRECISION)
            tl.store(first + row * P + p[None, :], a, mask=is_target & (p < P)[None, :])
        tl.debug_barrier()


def recurrence_relevance(
    relevance: Tensor,
    final: Tensor | None,
    weight: Tensor,
    entry: Tensor,
    scale: Tensor | None,
    carry: Tensor | None,
    gates: Tensor | None,
    output_entry: Tensor | None,
    output_scale: Tensor | None,
    reset: Tensor | None,
    projection: Tensor | None,
    input_weight: Tensor | None,
    spread: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See :func:`fastlrp.reference.recurrence.recurrence_relevance`, which is the definition."""
    coefficients = (entry, scale, carry, gates, output_entry, output_scale, reset, projection)
    if spread is not None:
        return composed.recurrence_relevance(relevance, final, weight, *coefficients, input_weight, spread)
    dtype = relevance.dtype
    dense = [None if t is None else t.float().contiguous() for t in (relevance, weight, *coefficients)]
    B, K, T, P = relevance.shape
    H = P if projection is None else projection.shape[1]
    first = relevance.new_zeros(B, K, P, dtype=torch.float32)
    memory = relevance.new_zeros(B, K, H, dtype=torch.float32)
    memory = memory if final is None else memory.copy_(final)
    flows = relevance.new_empty(B, K, T, weight.shape[0], dtype=torch.float32)
    if flows.numel():
        with torch.cuda.device_of(relevance):
            _launch(dense, flows, first, memory).run()
    sent = flows if input_weight is None else torch.matmul(flows.to(dtype), input_weight)
    return sent.to(dtype), first.to(dtype), memory.to(dtype), relevance.new_zeros(0)


def _launch(dense: list[Any], flows: Tensor, first: Tensor, memory: Tensor) -> Launch:
    relevance, weight, _, _, _, gates, _, output_scale, _, projection = dense
    B, K, T, P = relevance.shape
    H = memory.shape[2]
    names = ("relevance", "weight", "entry", "scale", "carry", "gates", "output_entry", "output_scale", "reset")
    values: dict[str, Any] = dict(zip((*names, "projection"), dense, strict=True))
    values |= {"arrived": None if projection is None else torch.empty_like(first), "flows": flows, "first": first}
    values |= {"memory": memory, "K": K, "T": T, "P": P, "H": H, "J": weight.shape[0] // H}
    values["G"] = 1 if gates is None else gates.shape[2]
    values["O"] = output_scale.shape[2] if projection is not None else 1
    targets = max(16, min(_TARGETS, power_of_two(K)))
    # Two products in one kernel leave fewer registers for each.
    widest = _BLOCK if projection is None else _BLOCK // 2
    block = max(16, min(widest, power_of_two(max(H, P))))
    values |= {"TARGETS": targets, "BLOCK": block, "DEPTH": min(block, _DEPTH), "PRECISION": matmul_precision()}
    return Launch(recurrence_kernel, (B * triton.cdiv(K, targets),), values, _WARPS, 2)


def compilations(dtype: torch.dtype) -> Iterator[Compilation]:
    """Every kernel that the launcher may run, on samples of layers; they are the same for all dtypes."""

    def made(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device="meta")

    B, K, T, H = 2, 32, 50, 256
    vector = made(B, T, H)
    layers = {
        "rnn": (made(H, H), vector, vector, None, None, None, None, None, None),
        "lstm": (made(H, H), vector, vector, vector, made(B, T, 1, H), None, None, None, None),
        "lstm uniform": (made(4 * H, H), vector, vector, vector, made(B, T, 3, H), vector, vector, None, None),
        "gru": (made(H, H), vector, vector, vector, made(B, T, 1, H), None, None, vector, None),
    }
    for name, given in layers.items():
        dense = [made(B, K, T, H), *given]
        launch = _launch(dense, made(B, K, T, given[0].shape[0]), made(B, K, H), made(B, K, H))
        yield from _in_both_precisions(launch, name)
    P, vector_p = 64, made(B, T, 64)
    dense = [made(B, K, T, P), made(H, P), vector_p, vector_p, vector, made(B, T, 1, H), None, made(B, T, 1, H), None,
             made(P, H)]  # fmt: skip
    launch = _launch(dense, made(B, K, T, H), made(B, K, P), made(B, K, H))
    yield from _in_both_precisions(launch, "lstm with a projection")


def _in_both_precisions(launch: Launch, name: str) -> Iterator[Compilation]:
    for precision in ("ieee", "tf32"):
        found = replace(launch, arguments={**launch.arguments, "PRECISION": precision})
        yield found.compilation(f"{name}, {precision}", precision == "tf32")
