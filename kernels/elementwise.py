"""From pre-activations to the coefficients of a rule, in one sweep over the maps.

``st(z) = z + epsilon sgn(z)``, ``sgn(0) = +1``, and ``1 / 0 := 0``; a factor of 0 gives 0 whatever the rest is; see
:func:`fastlrp.reference.elementwise.elementwise_coefficients`.

Each program takes ``BLOCK`` elements in the memory order of the results, which is that of z. Where all tensors have
that order there is nothing but one offset; elsewhere an element's place is decoded from up to four axes, which are as
few as the tensors' strides allow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastlrp.kernels.compilation import POINTERS, Compilation

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
    z0,
    z1,
    z2,
    z3,
    p0,
    p1,
    p2,
    p3,
    q0,
    q1,
    q2,
    q3,
    f0,
    f1,
    f2,
    f3,
    alpha,
    epsilon,
    RULE: tl.constexpr,
    FLAT: tl.constexpr,  # all tensors in the order of u and v, without gaps
    WIDE: tl.constexpr,  # 2^31 elements and more
    BLOCK: tl.constexpr,
):
    """``u`` and ``v`` of ``RULE``; ``z0`` to ``z3``, ``p``, ``q``, ``f``: strides of z, positive, negative, factor."""
    j = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = j < count
    p_place, q_place, f_place = j, j, j
    z_place = j
    if not FLAT:
        index = j if WIDE else j.to(tl.int32)
        z_place = _place(index, n1, n2, n3, z0, z1, z2, z3)
        p_place = _place(index, n1, n2, n3, p0, p1, p2, p3)
        q_place = _place(index, n1, n2, n3, q0, q1, q2, q3)
        f_place = _place(index, n1, n2, n3, f0, f1, f2, f3)

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
    result = u if u is not None else v
    assert result is not None
    if z.numel() == 0:
        return u, v
    given = [z, None if rule == "epsilon" else positive, negative if rule == "gamma" else None, factor]
    sizes, strides = _axes(result, [t for t in given if t is not None])
    if len(sizes) > _AXES:
        given = [None if t is None else torch.empty_like(result).copy_(t) for t in given]
        sizes, strides = _axes(result, [t for t in given if t is not None])
    flat = len(sizes) == 1 and all(s == [1] for s in strides)
    rest = iter(strides)
    of_each = [[0] * len(sizes) if t is None else next(rest) for t in given]
    fill = [0] * (_AXES - len(sizes))
    with torch.cuda.device_of(z):
        coefficients_kernel[(triton.cdiv(z.numel(), _BLOCK),)](
            *given,
            u,
            v,
            z.numel(),
            *([1] * len(fill) + sizes)[1:],
            *(stride for s in of_each for stride in fill + s),
            float(alpha),
            float(epsilon),
            RULE=rule,
            FLAT=flat,
            WIDE=z.numel() >= 2**31,
            BLOCK=_BLOCK,
            num_warps=_WARPS,
        )
    return u, v


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


def compilation(
    name: str,
    kernel: Any,
    pointers: dict[str, torch.dtype | None],
    constexprs: dict[str, Any],
    *,
    ones: Sequence[str] = (),
    floats: Sequence[str] = (),
    aligned: bool = True,
    unaligned: Sequence[str] = (),
    num_warps: int = 4,
    num_stages: int = 3,
    tensor_cores: bool = False,
) -> Compilation:
    """What Triton compiles for a launch: absent pointers and integers that are 1 become constants.

    Args:
        pointers: dtype of each pointer, None where it is absent. ones: integers that are 1.
        floats: the numbers that are no integers. aligned: whether pointers and integers are multiples of 16.
    """
    absent = {n: None for n, dtype in pointers.items() if dtype is None}
    constants = {**constexprs, **absent, **dict.fromkeys(ones, 1)}
    signature = {}
    divisible = []
    for parameter in kernel.params:
        n = parameter.name
        if n in constants:
            continue
        dtype = pointers.get(n)
        signature[n] = "fp32" if n in floats else "i32" if dtype is None else POINTERS[dtype]
        if aligned and n not in floats and n not in unaligned and not parameter.do_not_specialize:
            divisible.append(n)
    return Compilation(name, kernel, signature, constants, tuple(divisible), num_warps, num_stages, tensor_cores)


def compilations(dtype: torch.dtype) -> Iterator[Compilation]:
    """Every kernel that the launchers may run."""
    for rule, has_factor, flat in product(_RULES, (True, False), (True, False)):
        pointers = {
            "z": dtype,
            "positive": None if rule == "epsilon" else dtype,
            "negative": dtype if rule == "gamma" else None,
            "factor": dtype if has_factor else None,
            "u": None if rule == "zplus" else dtype,
            "v": None if rule == "epsilon" else dtype,
        }
        constants = {"RULE": rule, "FLAT": flat, "WIDE": False, "BLOCK": _BLOCK}
        ones = ("z3", "p3", "q3", "f3") if flat else ("z3",)
        name = f"{rule}{'-factor' if has_factor else ''}{'' if flat else '-strided'}"
        yield compilation(
            f"elementwise_coefficients-{name}",
            coefficients_kernel,
            pointers,
            constants,
            ones=ones,
            floats=("alpha", "epsilon"),
            num_warps=_WARPS,
        )
