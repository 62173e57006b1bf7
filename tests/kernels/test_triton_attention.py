"""Triton's attention, interpreted, against the definition: tiles of 16 queries, 16 keys and two targets."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fastlrp.backends import dispatch
from tests.ops.attention_cases import (
    FORWARD,
    OPS,
    RELEVANCE,
    VALUE,
    arguments,
    assert_equal,
    changed,
    heads_last,
)
from tests.ops.cases import reference, reversed_memory, with_gaps

pytest.importorskip("triton")
from fastlrp.kernels import attention, configs
from fastlrp.kernels.attention import call as calls
from fastlrp.kernels.attention.scores import tanh_ratio

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of numbers that are chosen away.

# B, K, H, G, S, T, D, E; causal, mask, cap, epsilon
CASES = [
    (1, 1, 1, 1, 1, 1, 4, 4, True, None, 0.0, 0.0),
    (2, 2, 2, 1, 5, 7, 5, 7, False, None, 0.0, 0.0),
    (1, 3, 2, 1, 17, 19, 20, 16, True, "bool", 2.0, 0.1),
    (1, 2, 2, 2, 33, 18, 16, 16, False, "bias", 0.0, 0.0),
    (1, 1, 1, 1, 16, 40, 16, 16, True, None, 0.0, 0.0),
    (1, 2, 1, 1, 40, 16, 16, 3, True, None, 0.0, 0.05),
    (1, 1, 2, 1, 6, 5, 4, 3, True, "rows", 2.0, 0.0),
    (1, 2, 2, 1, 3, 4, 17, 130, False, "alibi", 0.0, 0.0),
    (0, 2, 2, 1, 3, 4, 5, 5, False, None, 0.0, 0.0),
    (2, 0, 2, 1, 3, 4, 5, 5, True, "bool", 0.0, 0.0),
    (1, 2, 2, 1, 3, 0, 5, 5, False, None, 0.0, 0.0),
    (1, 2, 2, 1, 0, 4, 5, 5, False, None, 0.0, 0.0),
]  # fmt: skip
SMALL = (1, 2, 2, 1, 5, 7, 5, 6, True, "bool", 1.5, 0.1)
MANY = pytest.mark.parametrize("op", OPS)


def kernel(op):
    return getattr(attention, op)


@MANY
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_reference(op, case):
    given = arguments(case, torch.float32)[op]
    assert_equal(kernel(op)(*given), reference(op)(*given), given)


@MANY
@pytest.mark.parametrize("change", [heads_last, with_gaps, reversed_memory])
def test_in_any_memory(op, change):
    given = arguments(SMALL, torch.float32)[op]
    assert_equal(kernel(op)(*changed(given, change)), reference(op)(*given), given)


# Error over that of PyTorch's own operations. The interpreter cuts bfloat16 off where a GPU rounds.
@pytest.mark.parametrize(("dtype", "times"), [(torch.float16, 2), (torch.bfloat16, 4)], ids=str)
@MANY
def test_in_16_bits(op, dtype, times):
    given = arguments((1, 2, 2, 1, 9, 18, 16, 16, True, None, 0.0, 0.0), dtype)[op]
    wide = tuple(a.double() if isinstance(a, Tensor) else a for a in given)
    exact = reference(op)(*wide)
    composed, found = (dispatch.select(op, name, CPU, dtype).call(*given) for name in ("torch", "triton"))
    for got, other, right in zip(*(t if isinstance(t, tuple) else (t,) for t in (found, composed, exact)), strict=True):
        assert got.dtype == (torch.float32 if got.shape == wide[0].shape[:3] else dtype)
        error, allowed = ((t.double() - right).norm() / right.norm() for t in (got, other))
        assert error <= times * allowed + torch.finfo(dtype).eps, (float(error), float(allowed))


@MANY
def test_the_librarys_products(monkeypatch, op):
    """Where the table says so nothing of ours is launched."""
    monkeypatch.setattr(calls.Call, "launch", None)
    given = arguments(SMALL, torch.float32)[op]
    with configs.choosing(lambda *asked: configs.Config(16, 16, 1, route="library")):
        assert_equal(kernel(op)(*given), reference(op)(*given), given)


def test_a_sink_shows_in_the_sums_alone():
    """A score without a key takes a part of every row: the sum has it, and the output is the smaller for it."""
    case = (1, 2, 2, 1, 5, 7, 4, 4, False, None, 0.0, 0.0)
    g, q, k, v, output, log_sum, *rest = arguments(case, torch.float32)[RELEVANCE]
    with_sink = torch.logaddexp(log_sum, torch.tensor(0.5))
    output = output * (log_sum - with_sink).exp().unsqueeze(-1)
    given = (g, q, k, v, output, with_sink, *rest)
    assert_equal(kernel(RELEVANCE)(*given), reference(RELEVANCE)(*given), given)


def test_hand_computed():
    """Two keys of weight 1/2: values 1 and 3, so that the output is 2 and c_s is (1/2 (1 - 2), 1/2 (3 - 2))."""
    q, k = torch.zeros(1, 1, 1, 1), torch.tensor([2.0, 6.0]).view(1, 1, 2, 1)
    v, g = torch.tensor([1.0, 3.0]).view(1, 1, 2, 1), torch.ones(1, 1, 1, 1, 1)
    output, log_sum = attention.attention_forward(q, k, v, None, False, 0.5, 0.0)
    assert (output.item(), log_sum.item()) == (2, pytest.approx(math.log(2)))
    found = attention.attention_relevance(g, q, k, v, output, log_sum, None, False, 0.5, 0.0, 0.25, 0.25, 0.5, 0.0)
    # c_query = 1/4 * 1/2 * (-1/2 * 2 + 1/2 * 6); c_key = 1/4 * 1/2 * c_s * 0; c_value = 1/2 * P.
    assert torch.cat([t.flatten() for t in found]).tolist() == pytest.approx([0.25, 0, 0, 0.25, 0.25])
    assert attention.attention_value_relevance(g, q, k, log_sum, None, False, 0.5, 0.0).flatten().tolist() == [0.5, 0.5]


@pytest.mark.parametrize("fully", [False, True])
def test_where_nothing_is_attended_there_is_nothing(fully):
    case = (1, 2, 1, 1, 3, 4, 4, 4, False, None, 0.0, 0.0)
    mask = torch.zeros(3, 4, dtype=torch.bool)
    mask[0] = not fully
    q, k, v, *_, scale, cap = arguments(case, torch.float32)[FORWARD]
    for given in (mask, torch.where(mask, 0.0, -torch.inf)):
        output, log_sum = attention.attention_forward(q, k, v, given, False, scale, cap)
        assert torch.equal(log_sum.isneginf()[0, 0], ~mask.any(1))
        g = torch.randn(1, 2, 1, 3, 4)
        found = attention.attention_relevance(g, q, k, v, output, log_sum, given, False, scale, cap, 1, 1, 1, 0.0)
        for t in (output, *found):
            assert t.isfinite().all()
            assert not t[..., 1 - fully :, :].any() or t.shape[-2] == 4
        assert not fully or not any(t.any() for t in found)


@pytest.mark.parametrize("kind", ["bool", "bias", "heads", "padding"])
def test_tiles_that_a_mask_hides_are_not_read(kind):
    """Numbers that nobody attends to may be anything: here NaN, which any product would pass on."""
    case = (1, 2, 2, 1, 64, 64, 16, 16, kind == "heads", None, 0.0, 0.0)
    g, q, k, v, *_ = arguments(case, torch.float32)[RELEVANCE]
    i, j = torch.arange(64).unsqueeze(1), torch.arange(64)
    mask = ((i - j).abs() < 6) & (j < 48) & (i >= 16)
    if kind == "heads":
        mask = mask & ((i - j) < torch.tensor([3, 6]).view(2, 1, 1))
    if kind == "padding":
        mask = (j < 32).view(1, 1, 1, 64)
    if kind == "bias":
        mask = torch.where(mask, torch.randn(64, 64), -torch.inf)
    hidden = slice(32, 64) if kind == "padding" else slice(48, 64)
    causal = kind == "heads"
    forward, down, value = (reference(op) for op in (FORWARD, RELEVANCE, VALUE))
    output, log_sum = forward(q, k, v, mask, causal, 0.3, 0.0)
    rest = (mask, causal, 0.3, 0.0)
    expected = down(g, q, k, v, output, log_sum, *rest, 0.25, 0.25, 0.5, 0.0)
    of_value = value(g, q, k, log_sum, *rest)
    for t in (k, v):
        t[:, :, hidden] = torch.nan
    if kind != "padding":  # Queries that attend to nothing.
        q[:, :, :16] = torch.nan
    found, sums = attention.attention_forward(q, k, v, *rest)
    torch.testing.assert_close(found, output, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(sums, log_sum, rtol=1e-5, atol=1e-6)
    if kind in ("bool", "heads"):  # A window does not reach so far.
        far = k.clone()
        far[:, :, :16] = torch.nan
        assert bool(attention.attention_forward(q, far, v, *rest)[0][:, :, 32:].isfinite().all())
        down_to_far = attention.attention_relevance(g, q, far, v, output, log_sum, *rest, 0.25, 0.25, 0.5, 0.0)
        assert all(bool(t[..., 32:, :].isfinite().all()) for t in down_to_far)
    ours = attention.attention_relevance(g, q, k, v, output, log_sum, *rest, 0.25, 0.25, 0.5, 0.0)
    ours = (*ours, attention.attention_value_relevance(g, q, k, log_sum, *rest))
    for got, right in zip(ours, (*expected, of_value), strict=True):
        torch.testing.assert_close(got, right, rtol=1e-4, atol=1e-5)


def test_one_target_takes_no_more_than_one_at_once():
    given = arguments((1, 1, 2, 1, 5, 7, 5, 6, False, None, 0.0, 0.0), torch.float32)
    for op in (RELEVANCE, VALUE):
        assert_equal(kernel(op)(*given[op]), reference(op)(*given[op]), given[op])


def test_results_are_the_same_each_time_and_for_each_block():
    given = arguments((1, 4, 2, 1, 5, 7, 5, 6, False, None, 0.0, 0.0), torch.float32)[RELEVANCE]
    whole, again = (kernel(RELEVANCE)(*given) for _ in range(2))
    parts = [kernel(RELEVANCE)(given[0][:, k : k + 1], *given[1:]) for k in range(4)]
    for number, result in enumerate(whole):
        assert torch.equal(result, again[number])
        assert torch.equal(result, torch.cat([part[number] for part in parts], 1))


def test_tanh_over_its_argument():
    import triton
    import triton.language as tl

    @triton.jit
    def ratios(x, y, BLOCK: tl.constexpr):
        i = tl.arange(0, BLOCK)
        tl.store(y + i, tanh_ratio(tl.load(x + i)))

    x = torch.cat([torch.linspace(-20, 20, 254), torch.tensor([0.0, 1e-30])])
    y = torch.empty_like(x)
    ratios[(1,)](x, y, BLOCK=256)
    exact = torch.where(x == 0, 1.0, torch.tanh(x.double()) / x.double())
    assert (y - exact).abs().max() <= 3e-7  # Worst measured: 1.2e-7.


def test_classes_of_heads():
    assert [calls.shape_class(n) for n in (1, 64, 65, 128, 129)] == ["narrow", "narrow", "middle", "middle", "wide"]
    assert [calls.block(n) for n in (1, 16, 17, 80, 256)] == [16, 16, 32, 128, 256]


@MANY
def test_float64_has_a_reason(op):
    assert dispatch.select(op, "triton", CPU, torch.float32).backend == "triton"
    assert "kernels are for float32, float16 and bfloat16" in str(dispatch.reason("triton", op, CPU, torch.float64))
