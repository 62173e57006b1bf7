"""TF32 in Triton's kernels: tensor cores cut off what is beyond 10 bits, for which kernels have to make up.

Of a sum of positive numbers two factors that are cut off lose 7e-4, in every layer the same way; rounded to the
nearest they would lose next to nothing. The interpreter multiplies in TF32 as tensor cores do (``conftest.py``).
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as tree

from benchmarks import precisions
from fastlrp.backends import dispatch
from tests.ops.cases import reference
from tests.ops.test_ops_recurrence import arguments as recurrence_arguments

pytest.importorskip("triton")
from fastlrp.kernels import rounding

CPU = torch.device("cpu")
LOST = 1.5e-4
"""The largest share that a sum of positive numbers may lose: measured up to 8e-5; one factor cut off loses 3e-4."""


def positive(value):
    return tree.tree_map(lambda t: t.abs() + 0.1 if isinstance(t, Tensor) and t.is_floating_point() else t, value)


def attention(op, operands, forward):
    """A call with what that forward pass makes of its operands."""
    q, k, v, flow, up = operands
    scores = (None, True, q.shape[-1] ** -0.5, 0.0)
    output, log_sum = forward("attention_forward", (q, k, v, *scores))
    return {
        "attention_forward": (q, k, v, *scores),
        "attention_value_relevance": (flow, q, k, log_sum, *scores),
        "attention_relevance": (flow, q, k, v, output, log_sum, *scores, 0.25, 0.25, 0.5, 0.0),
        "attention_up": (q, k, v, output, log_sum, None, None, up, *scores, 0.25, 0.25, 0.5, 0.0),
    }[op]


def operands():
    B, K, H, S, D = 1, 2, 1, 20, 16
    return tuple(torch.randn(*size, S, D) for size in ((B, H), (B, 1), (B, 1), (B, K, H), (B, K, 1)))


def linear(samples, targets):
    flow, u, x = torch.rand(samples, targets, 20), torch.rand(samples, 20), torch.rand(samples, 18)
    return "linear_relevance", (flow, torch.rand(20, 18), u, u * 2, x, None, True, False)


def conv(K, signed, pooled=False):
    """16 channels to 16 on a map of 3x3, or on one of 2x2 in front of a pool."""
    geometry, u = ([1, 1], [1, 1], [1, 1]), torch.rand(1, 16, 2, 2) if pooled else torch.rand(1, 16, 3, 3)
    weight, x = torch.rand(16, 16, 3, 3), torch.rand(1, 16, *u.shape[2:])
    given = (weight, u, u * 2, x, None)
    if pooled:
        index = torch.randint(4, (1, 16, 1, 1))
        pool = [2, 2], [2, 2], [2, 2], [0, 0], [1, 1]
        rest = (*pool, [2, 2], *geometry, 1, signed, False)
        return "conv_unpooled_relevance", (torch.rand(1, K, 16, 1, 1), index, *given, *rest)
    rest = ([3, 3], *geometry, False, [0, 0], 1, signed, False)
    return "conv_relevance", (torch.rand(1, K, 16, 3, 3), *given, *rest)


def image():
    parts, x = [torch.rand(16, 3, 3, 3), torch.rand(16, 3, 3, 3)], torch.rand(1, 3, 4, 4)
    rest = ([4, 4], [1, 1], [1, 1], [1, 1], 1, False)
    return "input_relevance", (torch.rand(1, 1, 16, 4, 4), parts, [torch.rand(1, 16, 4, 4)] * 2, [x, x + 1], *rest)


CALLS = {
    "linear, one sample": lambda: linear(1, 16),
    "linear, samples": lambda: linear(8, 1),
    "conv": lambda: conv(2, False),
    "conv, signed": lambda: conv(2, True),
    "conv, unpooled": lambda: conv(2, False, pooled=True),
    "input": image,
    "recurrence": lambda: ("recurrence_relevance", recurrence_arguments((1, 3, 3, 20, 20, 3), "lstm", torch.float32)),
}
ATTENTION = ("attention_forward", "attention_value_relevance", "attention_relevance", "attention_up")


def lost(got, expected):
    """The largest share of its sum that a result has lost or won."""
    got, expected = ([t for t in tree.tree_leaves(x) if isinstance(t, Tensor) and t.numel()] for x in (got, expected))
    return max(abs(float(g.double().sum() / e.sum()) - 1) for g, e in zip(got, expected, strict=True))


def run(op, given, name="tf32"):
    with precisions.using(name):
        return dispatch.select(op, "triton", CPU, torch.float32).call(*given)


def exact(op, given):
    return reference(op)(*tree.tree_map(lambda t: t.double() if isinstance(t, Tensor) and t.is_floating_point() else t,
                                        given))  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_sums_of_positive_numbers_lose_nothing(name):
    op, given = CALLS[name]()
    given = positive(given)
    assert lost(run(op, given), exact(op, given)) <= LOST


@pytest.mark.parametrize("op", ATTENTION)
def test_attention_loses_nothing(op):
    given = positive(operands())
    got, right = run(op, attention(op, given, run)), exact(op, attention(op, given, exact))
    if op == "attention_relevance":  # Those of query and key are differences.
        got, right = got[2], right[2]
    assert lost(got, right) <= LOST


def test_attention_to_query_and_key_is_as_near_as_rounding():
    """Cut off, the numbers were off by up to 1.7e-3; made up for, by up to 6.3e-4."""
    given = operands()
    got, right = (f("attention_relevance", attention("attention_relevance", given, f)) for f in (run, exact))
    for found, wanted in zip(got, right, strict=True):
        assert (found.double() - wanted).norm() <= 8e-4 * wanted.norm()


def cut(t):
    return (t.contiguous().view(torch.int32) & -0x2000).view(torch.float32)


def test_what_is_exact_or_not_finite_stays():
    short = torch.randn(1000).bfloat16().float()
    short = torch.cat([short, 1 + torch.arange(1024) * 2.0**-10, torch.tensor([0.0, -0.0, math.inf, -math.inf])])
    assert torch.equal(cut(rounding.raised_copy(short)), short)
    nan = torch.tensor([0x7FFFFFFF, 0x7FC00000, -1], dtype=torch.int32).view(torch.float32)
    assert rounding.raised_copy(nan).isnan().all()


@pytest.mark.parametrize(
    "numbers", [torch.rand, torch.randn, lambda n: torch.randn(n).exp()], ids=["even", "normal", "log"]
)
def test_is_as_near_as_rounding(numbers):
    t = numbers(20000).abs() + 0.01
    off = cut(rounding.raised_copy(t)) / t - 1
    assert abs(off.mean()) <= 2e-5, "nothing is lost; cut off alone it is 3.5e-4"
    assert off.square().mean().sqrt() <= 2.3e-4, "rounded it is 2.0e-4"


@pytest.mark.parametrize(
    "change", [Tensor.contiguous, lambda t: t.mT, lambda t: t[:, ::2], lambda t: t[:1].expand(4, 6)]
)
def test_copies_of_any_memory(change):
    t = change(torch.randn(5, 6))
    before = t.clone()
    found = rounding.raised_copy(t)
    assert torch.allclose(found, t * (1 + 3.5e-4), rtol=1e-6)
    assert torch.equal(t, before)


def test_float32_is_not_raised():
    op, given = CALLS["linear, one sample"]()
    assert (run(op, given, "float32").double() - exact(op, given)).norm() <= 1e-6 * exact(op, given).norm()
