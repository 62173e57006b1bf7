"""From pre-activations to the coefficients of a rule, in one sweep over the maps.

``st(z) = z + epsilon sgn(z)``, ``sgn(0) = +1``, and ``1 / 0 := 0``; a factor of 0 gives 0 whatever the rest is; see
:func:`fastlrp.reference.elementwise.elementwise_coefficients`.

Each program takes ``BLOCK`` elements in the memory order of the results, which is that of z. Where all tensors have
that order there is nothing but one offset; elsewhere an element's place is decoded from up to four axes, which are as
few as the tensors' strides allow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastlrp.kernels.compilation import Compilation
from fastlrp.kernels.launch import Launch

_BLOCK = 1024
_WARPS = 4
_AXES = 4
_RULES = ("epsilon", "zplus", "gamma")


@triton.jit
def _inverse(z, epsilon):
    stabilized = z + tl.where(z < 0, -epsilon, epsilon)
    return tl.where(stabilized == 0, 0.0, 1.0 / stabilized)


@triton.jit
def _place(j, n1, n2, n3, s0, s1, s2, s3):
    """Offset of the element with flat index ``j`` in four axes, of which the last three have these sizes."""
    inner = j // n3
    offset = (j % n3).to(tl.int64) * s3 + (inner % n2).to(tl.int64) * s2
    outer = inner // n2
    return offset + (outer % n1).to(tl.int64) * s1 + (outer // n1).to(tl.int64) * s0


@triton.jit
def coefficients_kernel(
    z,
    positive,  # like z, or None
    negative,  # like z, or None
    factor,  # like z, or None
    u,  # dense, or None
    v,  # dense, or None
    count,
    n1,
    n2,
    n3,
    z_0,
    z_1,
    z_2,
    z_3,
    positive_0,
    positive_1,
    positive_2,
    positive_3,
    negative_0,
    negative_1,
    negative_2,
    negative_3,
    factor_0,
    factor_1,
    factor_2,
    factor_3,
    alpha,
    epsilon,
    RULE: tl.constexpr,
    FLAT: tl.constexpr,  # all tensors in the order of u and v, without gaps
    WIDE: tl.constexpr,  # 2^31 elements and more
    BLOCK: tl.constexpr,
):
    """``u`` and ``v`` of ``RULE``; the last three of four axes have ``n1`` to ``n3`` elements."""
    j = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = j < count
    p_place, q_place, f_place = j, j, j
    z_place = j
    if not FLAT:
        index = j if WIDE else j.to(tl.int32)
        z_place = _place(index, n1, n2, n3, z_0, z_1, z_2, z_3)
        p_place = _place(index, n1, n2, n3, positive_0, positive_1, positive_2, positive_3)
        q_place = _place(index, n1, n2, n3, negative_0, negative_1, negative_2, negative_3)
        f_place = _place(index, n1, n2, n3, factor_0, factor_1, factor_2, factor_3)

    if RULE != "zplus":
        total = tl.load(z + z_place, mask=inside, other=0.0).to(tl.float32)
    if RULE == "epsilon":
        first = _inverse(total, epsilon)
    if RULE == "zplus":
        second = alpha * _inverse(tl.load(positive + p_place, mask=inside, other=0.0).to(tl.float32), epsilon)
    if RULE == "gamma":
        above = tl.load(positive + p_place, mask=inside, other=0.0).to(tl.float32)
        below = tl.load(negative + q_place, mask=inside, other=0.0).to(tl.float32)
        inverse = _inverse(total + alpha * tl.where(total > 0, above, below), epsilon)
        first = tl.where(total > 0, inverse, tl.where(total < 0, (1 + alpha) * inverse, 0.0))
        second = tl.where(total > 0, alpha * inverse, tl.where(total < 0, -alpha * inverse, 0.0))
    if factor is not None:
        f = tl.load(factor + f_place, mask=inside, other=0.0).to(tl.float32)
        if u is not None:
            first = tl.where(f == 0, 0.0, f * first)
        if v is not None:
            second = tl.where(f == 0, 0.0, f * second)
    if u is not None:
        tl.store(u + j, first.to(u.dtype.element_ty), mask=inside)
    if v is not None:
        tl.store(v + j, second.to(v.dtype.element_ty), mask=inside)


def elementwise_coefficients(
    z: Tensor,
    positive: Tensor | None,
    negative: Tensor | None,
    factor: Tensor | None,
    rule: str,
    alpha: float,
    epsilon: float,
) -> tuple[Tensor | None, Tensor | None]:
    """The two coefficients of a rule; see :func:`fastlrp.reference.elementwise.elementwise_coefficients`."""
    u = None if rule == "zplus" else torch.empty_like(z)
    v = None if rule == "epsilon" else torch.empty_like(z)
    if z.numel() == 0:
        return u, v
    with torch.cuda.device_of(z):
        _launch(z, positive, negative, factor, u, v, rule, float(alpha), float(epsilon)).run()
    return u, v


def _launch(
    z: Tensor,
    positive: Tensor | None,
    negative: Tensor | None,
    factor: Tensor | None,
    u: Tensor | None,
    v: Tensor | None,
    rule: str,
    alpha: float,
    epsilon: float,
) -> Launch:
    result = v if u is None else u
    assert result is not None
    maps = {"z": z, "positive": None if rule == "epsilon" else positive}
    maps |= {"negative": negative if rule == "gamma" else None, "factor": factor}
    sizes, strides = _axes(result, [t for t in maps.values() if t is not None])
    if len(sizes) > _AXES:
        maps = {name: None if t is None else torch.empty_like(result).copy_(t) for name, t in maps.items()}
        sizes, strides = _axes(result, [t for t in maps.values() if t is not None])
    fill = _AXES - len(sizes)
    rest = iter(strides)
    values: dict[str, Any] = {**maps, "u": u, "v": v, "count": z.numel(), "alpha": alpha, "epsilon": epsilon}
    values |= {f"n{axis}": size for axis, size in enumerate([1] * fill + sizes) if axis}
    for name, t in maps.items():
        of_map = [0] * _AXES if t is None else [0] * fill + next(rest)
        values |= {f"{name}_{axis}": stride for axis, stride in enumerate(of_map)}
    flat = len(sizes) == 1 and all(s == [1] for s in strides)
    values |= {"RULE": rule, "FLAT": flat, "WIDE": z.numel() >= 2**31, "BLOCK": _BLOCK}
    return Launch(coefficients_kernel, (triton.cdiv(z.numel(), _BLOCK),), values, _WARPS, 1)


def _axes(result: Tensor, tensors: Sequence[Tensor]) -> tuple[list[int], list[list[int]]]:
    """Sizes and each tensor's strides, as few axes as they allow, in the memory order of the dense ``result``."""
    order = [axis for axis in range(result.dim()) if result.shape[axis] != 1]
    order.sort(key=result.stride, reverse=True)
    sizes: list[int] = []
    strides: list[list[int]] = [[] for _ in tensors]
    for axis in order:
        size = result.shape[axis]
        if sizes and all(s[-1] == t.stride(axis) * size for s, t in zip(strides, tensors, strict=True)):
            sizes[-1] *= size
            for s, t in zip(strides, tensors, strict=True):
                s[-1] = t.stride(axis)
        else:
            sizes.append(size)
            for s, t in zip(strides, tensors, strict=True):
                s.append(t.stride(axis))
    return (sizes, strides) if sizes else ([1], [[1] for _ in tensors])


def compilations(dtype: torch.dtype) -> Iterator[Compilation]:
    """Every kernel that the launcher may run."""
    dense = torch.empty(2, 32, 64, dtype=dtype, device="meta")
    for rule, has_factor, flat in product(_RULES, (True, False), (True, False)):
        other = dense if flat else torch.empty(2, 64, 32, dtype=dtype, device="meta").mT
        u, v = (None if rule == without else dense for without in ("zplus", "epsilon"))
        launch = _launch(dense, other, other, other if has_factor else None, u, v, rule, 0.5, 0.5)
        name = f"{rule}{'-factor' if has_factor else ''}{'' if flat else '-strided'}"
        found = launch.compilation(f"elementwise_coefficients-{name}", False)
        yield replace(found, signature={**found.signature, "alpha": "fp32", "epsilon": "fp32"})
