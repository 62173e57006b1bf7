"""Linear, pooling and coefficient kernels, interpreted, against the definition on small hostile shapes."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor

from fastlrp.backends import dispatch
from tests.ops.cases import assert_close, few_layouts, layouts, mixed, reference, terms
from tests.ops.pools import ALL, AVG, Pool, max_pool
from tests.ops.pools import arguments as pool_arguments
from tests.ops.test_ops_elementwise import RULES
from tests.ops.test_ops_elementwise import arguments as coefficient_arguments

pytest.importorskip("triton")

HALF = (torch.float16, torch.bfloat16)
# How much larger than that of composed PyTorch the error may be. The interpreter cuts bfloat16 off where a GPU rounds.
TIMES = {torch.float16: 2, torch.bfloat16: 3}


def kernel(op: str) -> Any:
    return getattr(importlib.import_module(f"fastlrp.kernels.{dispatch.STEMS[op]}"), op)


def wide(argument: Any) -> Any:
    return argument.double() if isinstance(argument, Tensor) and argument.is_floating_point() else argument


def assert_as_good_as_pytorch(op: str, arguments: tuple[Any, ...]) -> None:
    """16-bit: the error against float64 is at most a few times that of composed PyTorch, and one rounding."""
    exact = reference(op)(*map(wide, arguments))
    composed = dispatch.select(op, "torch", torch.device("cpu"), arguments[0].dtype).call(*arguments)
    found = kernel(op)(*arguments)
    pairs = [(found, composed, exact)] if isinstance(found, Tensor) else zip(found, composed, exact, strict=True)
    for got, other, expected in pairs:
        if expected is None:
            assert got is None
            continue
        assert got.dtype == arguments[0].dtype
        size = expected.norm().clamp(min=1e-30)
        error, allowed = ((t.double() - expected).norm() / size for t in (got, other))
        assert error <= TIMES[got.dtype] * allowed + torch.finfo(got.dtype).eps, (float(error), float(allowed))


# Linear

SHAPES = [  # B, K, L, O, I
    (2, 3, (), 5, 7), (1, 1, (), 1, 1), (0, 3, (), 5, 7), (2, 0, (), 5, 7), (2, 2, (3,), 17, 15), (1, 17, (), 33, 18),
]  # fmt: skip


def linear_arguments(shape: Any, u: Any, v: Any, dtype: torch.dtype) -> tuple[Any, ...]:
    B, K, L, O, I = shape
    weight, x = mixed(O, I, dtype=dtype), mixed(B, *L, I, dtype=dtype)
    return mixed(B, K, *L, O, dtype=dtype), weight, u, v, x, None


@pytest.mark.parametrize(("signed", "multiply"), [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_linear(shape, signed, multiply):
    B, _, L, O, _ = shape
    for u, v in terms((B, *L, O), torch.float32):
        arguments = (*linear_arguments(shape, u, v, torch.float32), signed, multiply)
        assert_close(kernel("linear_relevance")(*arguments), reference("linear_relevance")(*arguments))


def test_linear_in_any_memory():
    (u, v) = list(terms((2, 3, 17), torch.float32))[2]
    arguments = linear_arguments((2, 2, (3,), 17, 15), u, v, torch.float32)
    expected = reference("linear_relevance")(*arguments, True, True)
    for changed in layouts(arguments, channel_axis=0):
        assert_close(kernel("linear_relevance")(*changed, True, True), expected)


@pytest.mark.parametrize("dtype", HALF)
def test_linear_in_16_bits(dtype):
    for u, v in terms((2, 9), dtype):
        arguments = linear_arguments((2, 3, (), 9, 20), u, v, dtype)
        assert_as_good_as_pytorch("linear_relevance", (*arguments, True, True))


@pytest.mark.parametrize(("signed", "multiply"), [(False, False), (True, True)])
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 1, 1, 1), (0, 3, 5, 7), (2, 0, 5, 7), (2, 17, 4, 37)], ids=str)
def test_one_hot(shape, signed, multiply):
    B, K, O, I = shape
    for u, v in terms((B, O), torch.float32):
        value, index = mixed(B, K, dtype=torch.float32), torch.randint(0, O, (B, K))
        arguments = (value, index, mixed(O, I, dtype=torch.float32), u, v, mixed(B, I, dtype=torch.float32))
        op = "linear_one_hot_relevance"
        assert_close(kernel(op)(*arguments, signed, multiply), reference(op)(*arguments, signed, multiply))


# Pools

POOLS = [
    Pool((6, 4)), Pool((7, 5), ceil_mode=True), Pool((7, 9), kernel=3, stride=2, padding=1),
    Pool((9, 8), kernel=3, stride=2, padding=1, dilation=2), Pool((5, 5), kernel=2, stride=3),
    Pool((1, 1), 1, 1, B=1, K=1, C=1),
    Pool((4, 4), B=0), Pool((4, 4), K=0), Pool((13,), kernel=3, stride=2), Pool((4, 3, 5), kernel=2, stride=2, C=2),
    Pool((4, 4), C=17, B=1, K=2), Pool((3, 2), kernel=5, stride=1, padding=2),
]  # fmt: skip


@pytest.mark.parametrize(
    ("op", "p"),
    [
        pytest.param(op, p, marks=pytest.mark.full if p is POOLS[-1] and op != "pool_max_relevance" else ())
        for op in ALL
        for p in POOLS
    ],
    ids=str,
)
def test_pool(op, p):
    if op == AVG and p.dilation != 1:
        pytest.skip("average pools have no dilation")
    given = pool_arguments(op, p, torch.float32)
    expected = reference(op)(*given)
    assert_close(kernel(op)(*given), expected)


@pytest.mark.parametrize(("op", "place"), list(zip(ALL, (2, 3, 1, 1), strict=True)))
def test_pool_without_a_scale(op, place):
    given = list(pool_arguments(op, Pool((4, 4)), torch.float32))
    given[place] = None
    assert_close(kernel(op)(*given), reference(op)(*given))


@pytest.mark.parametrize("op", ALL)
def test_pool_in_any_memory(op):
    given = pool_arguments(op, Pool((5, 3), kernel=3, padding=1, B=2, K=2, C=3), torch.float32)
    expected = reference(op)(*given)
    for changed in layouts(given) if op == "pool_max_relevance" else few_layouts(given):
        assert_close(kernel(op)(*changed), expected)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("op", ALL)
def test_pool_in_16_bits(op, dtype):
    assert_as_good_as_pytorch(op, pool_arguments(op, Pool((7, 5), kernel=3, padding=1), dtype))


@pytest.mark.parametrize("count", [(True, None), (False, None), (True, 3)])
def test_average_counts(count):
    p = Pool((8, 7), kernel=3, stride=2, padding=1, ceil_mode=True)
    output, _ = max_pool(p, mixed(p.B, p.C, *p.S, dtype=torch.float32))
    kernel_size, stride, padding, _ = p.lists()
    r = mixed(p.B, p.K, *output.shape[1:], dtype=torch.float32)
    given = (r, None, list(p.S), kernel_size, stride, padding, p.ceil_mode, *count)
    assert_close(kernel(AVG)(*given), reference(AVG)(*given))


# Coefficients


@pytest.mark.parametrize("size", [(2, 3, 5, 7), (1, 1), (0, 3), (3,), (1, 2, 31, 33), (2, 2, 2, 3, 5)], ids=str)
@pytest.mark.parametrize(("rule", "alpha"), RULES)
def test_coefficients(rule, alpha, size):
    op = "elementwise_coefficients"
    z, positive, negative, factor = coefficient_arguments(size, torch.float32)
    for f in (factor, None):
        for epsilon in (1e-6, 0.0):
            given = (z, positive, negative, f, rule, alpha, epsilon)
            assert_close(kernel(op)(*given), reference(op)(*given))


@pytest.mark.parametrize("rule", ["epsilon", "zplus", "gamma"])
def test_coefficients_in_any_memory(rule):
    op = "elementwise_coefficients"
    given = coefficient_arguments((2, 3, 5, 7), torch.float32)
    expected = reference(op)(*given, rule, 0.5, 1e-3)
    for changed in layouts(given):
        assert_close(kernel(op)(*changed, rule, 0.5, 1e-3), expected)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("rule", ["epsilon", "zplus", "gamma"])
def test_coefficients_in_16_bits(rule, dtype):
    given = coefficient_arguments((2, 3, 5, 7), dtype)
    assert_as_good_as_pytorch("elementwise_coefficients", (*given, rule, 0.5, 1e-1))
