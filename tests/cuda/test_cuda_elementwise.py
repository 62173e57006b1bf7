"""The CUDA kernels of the coefficients, run on the CPU by the emulator, against the definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastlrp.aten import elementwise as plainly
from tests.cuda.emulated import ORDERS, emulated, order
from tests.fixtures import poisoned, seeded  # noqa: F401
from tests.ops.cases import TOLERANCE, channels_last, in_dtypes, reference, reversed_memory, same, widened, with_gaps
from tests.ops.test_ops_elementwise import OP, POOLED, POOLS, RULES, SIZES, arguments, pooled_arguments

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def check(got: tuple[Tensor | None, ...], plain: tuple[Tensor | None, ...], exact: tuple[Tensor | None, ...]) -> None:
    """Of 16 bits at most twice the error of PyTorch's own operations, where the result is in float16's range."""
    assert len(got) == len(exact)
    for g, p, e in zip(got, plain, exact, strict=True):
        if e is None or g is None or p is None:
            assert e is g is p is None
            continue
        assert g.shape == e.shape
        inside = e.abs() < 3e4
        scale = e[inside].norm().clamp(min=1e-30)
        error = (g.double() - e)[inside].norm() / scale
        bound = TOLERANCE.get(g.dtype, 2 * (p.double() - e)[inside].norm() / scale)
        assert e.numel() == 0 or (inside.any() and error <= bound)


def call(op: str, *given: Any) -> Any:
    return getattr(emulated(), op)(*given)


@pytest.mark.parametrize(("size", "dtype"), in_dtypes([*SIZES, (3, 1009), (5, 16, 8)], DTYPES), ids=str)
@pytest.mark.parametrize(("rule", "alpha"), RULES)
def test_equals_reference(rule, alpha, size, dtype):
    z, positive, negative, factor = arguments(size, dtype)
    for f in (factor, None):
        for epsilon in (1e-6, 0.1, 0.0) if dtype in TOLERANCE else (0.1, 0.0):
            rest = (rule, alpha, epsilon)
            exact = reference(OP)(*widened((z, positive, negative, f)), *rest)
            plain = plainly.elementwise_coefficients(z, positive, negative, f, *rest)
            for change in (same, with_gaps, reversed_memory, unaligned):
                for other in (same, change):
                    others = [None if t is None else other(t) for t in (positive, negative, f)]
                    check(call(OP, change(z), *others, *rest), plain, exact)


def unaligned(t: Tensor) -> Tensor:
    """The same values in dense memory that begins one element after a multiple of 16 bytes."""
    return torch.full((t.numel() + 1,), torch.nan, dtype=t.dtype)[1:].view(t.shape).copy_(t)


def test_threads_sweep_on():
    """More elements than a grid has threads for, and a rest that fills no vector."""
    z = torch.randn(132 * 8 * 256 * 4 * 2 + 1237)
    u, v = call(OP, z, None, None, None, "epsilon", 1.0, 0.5)
    assert v is None
    assert torch.equal(u, 1 / (z + torch.where(z < 0, -0.5, 0.5)))


@pytest.mark.parametrize(("rule", "alpha"), RULES)
def test_a_silent_neuron_is_never_nan(rule, alpha):
    z = torch.tensor([0.0, -0.0, 1e-45, -1e-45, torch.inf, -torch.inf, torch.nan])
    zero = torch.zeros_like(z)
    for epsilon in (0.0, 1e-6):
        for p, n in ((zero, zero), (z.abs(), -z.abs())):
            for made in call(OP, z, p, n, zero, rule, alpha, epsilon):
                assert made is None or torch.equal(made, zero)


def test_sign_of_zero_is_positive():
    u, v = call(OP, torch.tensor([0.0, -0.0]), None, None, None, "epsilon", 1.0, 0.5)
    assert v is None
    assert u.tolist() == [2.0, 2.0]


def test_result_keeps_the_layout_of_z():
    z, positive, negative, factor = (channels_last(1)(t) for t in arguments((2, 3, 4, 5), torch.float32))
    u, v = call(OP, z, positive, negative, factor, "gamma", 0.25, 1e-6)
    assert u.stride() == v.stride() == z.stride()


@pytest.mark.parametrize(
    ("pool", "rule", "alpha", "dtype"),
    [(pool, *RULES[(n + m) % 5], dtype) for n, (pool, dtype) in enumerate(in_dtypes(POOLS, DTYPES)) for m in (0, 1, 4)],
    ids=str,
)
def test_pooled_equals_reference(pool, rule, alpha, dtype):
    for batch, channels in ((2, 3), (0, 2), (1, 16), (2, 24)):
        z, positive, negative, geometry = pooled_arguments(channels, pool, dtype, batch)
        for epsilon in (1e-6, 0.0) if dtype in TOLERANCE else (0.1, 0.0):
            rest = (rule, alpha, epsilon, *geometry)
            exact = reference(POOLED)(*widened((z, positive, negative)), *rest)
            plain = plainly.elementwise_pooled_coefficients(z, positive, negative, *rest)
            for change in (same, with_gaps, channels_last(1), unaligned):
                for other in (same, change):
                    pooled, index, *made = call(POOLED, change(z), other(positive), other(negative), *rest)
                    assert torch.equal(pooled.double(), exact[0])  # no arithmetic: a maximum is one of the inputs
                    assert torch.equal(index, exact[1])
                    check(tuple(made), plain[2:], exact[2:])


@pytest.mark.parametrize("last", [False, True])
def test_pooled_winners_of_ties_and_nan(last):
    nan = torch.nan
    z = torch.tensor([[-1.0, 0.0, 3.0, 3.0], [-2.0, -0.5, 1.0, 3.0], [nan, 1.0, nan, 2.0], [2.0, nan, 9.0, nan]])
    z = z.expand(1, 4, 4, 4)
    z = channels_last(1)(z) if last else z.contiguous()
    pooled, index, u, v = call(POOLED, z, z, None, "zplus", 1.0, 0.0, [2, 2], [2, 2], [0, 0], [1, 1], False)
    assert u is None
    assert index[0].tolist() == [[[0, 2], [13, 15]]] * 4
    assert pooled[0, :, 0].tolist() == [[0, 3]] * 4
    assert pooled[0, :, 1].isnan().all()
    assert v[0, :, 0].tolist() == [[0, 0, 1, 1]] * 4
    for made in (pooled, index, v):
        assert (made.movedim(1, -1) if last else made).is_contiguous()


def test_pooled_is_one_sweep():
    """Whether or not windows overlap, unless a window's part of the input is too large for a thread."""
    for pool in POOLS:
        z, positive, negative, geometry = pooled_arguments(4, pool, torch.float32)
        before = emulated().launches()
        call(POOLED, z, positive, negative, "gamma", 0.25, 1e-6, *geometry)
        assert emulated().launches() - before == (2 if geometry[1] == [5, 4] else 1)


@pytest.mark.parametrize("op", [OP, POOLED])
def test_orders_of_threads_change_no_bit(op):
    z, positive, negative, geometry = pooled_arguments(8, POOLS[4], torch.float32)
    rest = (None, "gamma", 0.25, 1e-6) if op == OP else ("gamma", 0.25, 1e-6, *geometry)
    whole = call(op, z, positive, negative, *rest)
    for name in ORDERS:
        with order(name, seed=1):
            for one, other in zip(call(op, z, positive, negative, *rest), whole, strict=True):
                assert torch.equal(one, other)


Z, X = torch.ones(2, 3), torch.ones(2, 3, 4, 4)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({4: "flat"}, ValueError, "rule must be 'epsilon', 'zplus' or 'gamma', got 'flat'"),
        ({1: None}, ValueError, "rule 'gamma' needs positive, got None"),
        ({2: Z[:1]}, ValueError, r"negative must have shape \[2, 3\], got \[1, 3\]"),
        ({3: Z.double()}, TypeError, "factor must be Float, got Double"),
        ({0: Z.int()}, TypeError, "z must be float16, bfloat16, float32 or float64, got Int"),
        ({0: Z.to("meta")}, RuntimeError, "z must be a dense CUDA tensor, got Strided on meta"),
    ],
)
def test_errors(change, error, message):
    values = [Z, Z, Z, Z, "gamma", 0.25, 1e-6]
    for place, value in change.items():
        values[place] = value
    with pytest.raises(error, match=f"{OP}: {message}"):
        call(OP, *values)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({3: "flat"}, ValueError, "rule must be 'epsilon', 'zplus' or 'gamma', got 'flat'"),
        ({1: None}, ValueError, "rule 'gamma' needs positive, got None"),
        ({2: X[:1]}, ValueError, r"negative must have shape \[2, 3, 4, 4\], got \[1, 3, 4, 4\]"),
        ({0: Z}, ValueError, r"z must have shape \(B, C, \*S\) with one to three spatial axes, got \[2, 3\]"),
        ({0: X.to("meta")}, RuntimeError, "z must be a dense CUDA tensor, got Strided on meta"),
        ({6: [2]}, ValueError, r"kernel_size must have one entry per spatial axis of z \(2\), got \[2\]"),
        ({6: [2, 0]}, ValueError, r"kernel_size must be positive, got \[2, 0\]"),
        ({7: [2, 2**31]}, ValueError, r"stride must be below 2\^31, got \[2, 2147483648\]; use backend='torch'"),
        ({8: [-1, 0]}, ValueError, r"padding must not be negative, got \[-1, 0\]"),
        (
            {9: [1, 4]},
            ValueError,
            r"z must be large enough for one window, got \[2, 3, 4, 4\] for kernel_size \[2, 2\]",
        ),
    ],
)
def test_pooled_errors(change, error, message):
    values = [X, X, X, "gamma", 0.25, 1e-6, [2, 2], [2, 2], [0, 0], [1, 1], False]
    for place, value in change.items():
        values[place] = value
    with pytest.raises(error, match=f"{POOLED}: {message}"):
        call(POOLED, *values)
