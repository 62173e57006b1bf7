"""Fused attention under a mask that is computed from the input: written out, as other models have it.

In ``softmax(scale Q K^T + mask) V`` such a mask is a summand of the scores and takes its share of their relevance,
which kernels for the whole do not give: they take a mask for a condition. Relative positions that are made of the
queries (SAM) are such masks. One that no relevance can reach, made of integers or comparisons, is a condition and
stays one.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from fastlrp.capture.graph import Value
from fastlrp.capture.translate.rewrite import Step, Steps, broadcast, shape_of

aten = torch.ops.aten

_NARROW = (torch.float16, torch.bfloat16)


def written_out(a: dict[str, Any], shape: Any) -> Steps | None:
    """The scaled query times the keys, the mask added, the softmax, its product with the values.

    Keys of several query heads are repeated. Rows that may attend to nothing are 0, as they are in the fused form.
    """
    query, key, value, mask = a["query"], a["key"], a["value"], a.get("attn_mask")
    if not isinstance(mask, Value) or not mask.is_differentiable:
        return None
    if a.get("dropout_p") or a.get("is_causal"):
        return None  # Errors: kind attention says of the first, PyTorch of the second, that a model cannot have it.
    shapes = [shape_of(x) for x in (query, key, value)]
    sizes, key_sizes, _ = shapes
    if not all(len(own) >= 2 and isinstance(own[-1], int) for own in shapes):
        return None
    steps: Steps = []

    def add(call: Any, name: str, args: tuple[Any, ...], *form: Any) -> Step:
        steps.append((call, name, args, {}, *form))
        return Step(len(steps) - 1)

    scale = a.get("scale")
    dtype = query.dtype if isinstance(query, Value) else query.tensor().dtype
    scaled = add(aten.mul.Tensor, "mul", (query, 1 / math.sqrt(sizes[-1]) if scale is None else float(scale)), sizes)
    if a.get("enable_gqa"):
        grouped = [_repeated(add, x, own, sizes) for x, own in zip((key, value), shapes[1:], strict=True)]
        if None in grouped:
            return None
        (key, key_sizes), (value, _) = (pair for pair in grouped if pair is not None)
    across = add(aten.transpose.int, "transpose", (key, -2, -1), (*key_sizes[:-2], key_sizes[-1], key_sizes[-2]))
    outer = broadcast(sizes[:-2], key_sizes[:-2])
    form = (*outer, sizes[-2], key_sizes[-2])
    scores = add(aten.matmul.default, "matmul", (scaled, across), form, dtype)
    wide = torch.float32 if dtype in _NARROW else dtype
    if wide != dtype:  # Kernels for the whole add masks and exponentials in float32.
        scores = add(aten.to.dtype, "to", (scores, wide), form, wide)
    form = broadcast(form, mask.shape)
    summed = add(aten.add.Tensor, "add", (scores, mask), form, wide)
    weights = add(aten._safe_softmax.default, "softmax", (summed, -1), form, wide)
    if wide != dtype:
        weights = add(aten.to.dtype, "to", (weights, dtype), form, dtype)
    add(aten.matmul.default, "matmul", (weights, value))
    return steps


def _repeated(add: Any, x: Any, own: tuple[Any, ...], sizes: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]] | None:
    """Keys or values with each head as often as queries read it, and their sizes; None where heads are not numbers."""
    if len(own) < 3 or not isinstance(own[-3], int) or not isinstance(sizes[-3], int):
        return None
    times, form = sizes[-3] // own[-3], (*own[:-3], sizes[-3], *own[-2:])
    return (
        (add(aten.repeat_interleave.self_int, "repeat_interleave", (x, times, -3), form), form)
        if times > 1
        else (x, own)
    )
