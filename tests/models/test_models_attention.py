"""Scaled dot-product attention: by hand, and against autograd with masks and shapes of all sorts, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastlrp
from fastlrp import composites, rules
from fastlrp.composites import kind
from tests.transformers.oracle import attention, divided


class Attention(nn.Module):
    def __init__(self, call: Callable[..., Tensor]) -> None:
        super().__init__()
        self.call = call

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *more: Tensor) -> Tensor:
        return self.call(q, k, v, *more)


def composite(rule: rules.Rule) -> composites.Composite:
    return composites.attnlrp().with_entries((kind("attention"), rule))


def test_two_positions_by_hand():
    """Scores ``(ln 3, 0)``, weights ``(3/4, 1/4)``, output ``4 * 3/4 + 8 * 1/4 = 5``, which is explained.

    Values: half, ``(3/2, 1)``. Weights: the other half, ``(3/2, 1)``. Scores: ``ln 3 (3/2 - 3/4 * 5/2)`` and 0, of
    which query and key get half each.
    """
    q, k, v = (
        torch.tensor([[n]], dtype=torch.float64).view(1, 1, -1, 1) for n in ([1.0], [math.log(3), 0.0], [4.0, 8.0])
    )
    model = Attention(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=1.0))
    start = torch.full((1, 1, 1, 1, 1), 5.0, dtype=torch.float64)
    found = fastlrp.Explainer(model, "attnlrp")((q, k, v), start)
    of_score = -0.375 * math.log(3)
    assert found[0].flatten().tolist() == pytest.approx([of_score / 2], rel=1e-13)
    assert found[1].flatten().tolist() == pytest.approx([of_score / 2, 0.0], rel=1e-13)
    assert found[2].flatten().tolist() == pytest.approx([1.5, 1.0], rel=1e-13)
    found = fastlrp.Explainer(model, "cp_lrp")((q, k, v), start)
    assert found[2].flatten().tolist() == pytest.approx([3.0, 2.0], rel=1e-13)
    assert found[0] is None or not found[0].any()


def test_epsilon_by_hand():
    """Epsilon 1: of ``o = 5`` five sixths pass; of the score ``ln 3`` its share ``ln 3 / (ln 3 + 1)``."""
    q, k, v = (
        torch.tensor([[n]], dtype=torch.float64).view(1, 1, -1, 1) for n in ([1.0], [math.log(3), 0.0], [4.0, 8.0])
    )
    model = Attention(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=1.0))
    found = fastlrp.Explainer(model, composite(rules.Uniform(1.0)))(
        (q, k, v), torch.full((1, 1, 1, 1, 1), 6.0).double()
    )
    of_score = -0.375 * math.log(3) * math.log(3) / (math.log(3) + 1)
    assert found[2].flatten().tolist() == pytest.approx([1.5, 1.0], rel=1e-13)
    assert found[0].flatten().tolist() == pytest.approx([of_score / 2], rel=1e-13)


SEED = torch.Generator().manual_seed(3)
ROWS = torch.rand(3, 5, generator=SEED) > 0.4
ROWS[1] = False
BIAS = torch.randn(4, 3, 5, generator=SEED, dtype=torch.float64)
sdpa = F.scaled_dot_product_attention


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return sdpa(q, k, v, is_causal=True)


def rows(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return sdpa(q, k, v, attn_mask=ROWS)


def biased(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return sdpa(q, k, v, attn_mask=BIAS)


LOWEST = torch.zeros(3, 5, dtype=torch.float64)
LOWEST[1], LOWEST[2, 1:] = torch.finfo(torch.float32).min, torch.finfo(torch.float32).min


def lowest(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return sdpa(q, k, v, attn_mask=LOWEST)


def grouped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return sdpa(q, k, v, enable_gqa=True)


def scaled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return sdpa(q, k, v, scale=0.3)


CASES: dict[str, tuple[Callable[..., Tensor], dict[str, Any], list[tuple[int, ...]]]] = {
    "plain": (sdpa, {}, [(4, 3, 2)] * 3),
    "causal": (causal, {"causal": True}, [(4, 3, 2)] * 3),
    "causal, more keys": (causal, {"causal": True}, [(1, 3, 2), (1, 5, 2), (1, 5, 4)]),
    "cross, one query": (sdpa, {}, [(2, 1, 3), (2, 5, 3), (2, 5, 4)]),
    "rows that attend to nothing": (rows, {"mask": ROWS}, [(4, 3, 2), (4, 5, 2), (4, 5, 2)]),
    "bias per head": (biased, {"mask": BIAS}, [(4, 3, 2), (4, 5, 2), (4, 5, 2)]),
    "a row of the lowest number": (lowest, {"mask": LOWEST}, [(4, 3, 2), (4, 5, 2), (4, 5, 2)]),
    "grouped keys": (grouped, {}, [(4, 3, 2), (2, 5, 2), (2, 5, 3)]),
    "scale": (scaled, {"scale": 0.3}, [(4, 3, 2)] * 3),
    "no heads": (sdpa, {}, [(3, 2), (5, 2), (5, 4)]),
    "two axes of heads": (rows, {"mask": ROWS}, [(2, 2, 3, 2), (2, 2, 5, 2), (2, 2, 5, 2)]),
}
"""The model's call, the definition's arguments, and the sizes of query, key and value after the batch."""


@pytest.mark.parametrize("name", CASES)
def test_equals_autograd(name):
    """Also the textbook, targets one by one and samples alone. Worst measured: 1e-14."""
    call, how, sizes = CASES[name]
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, *size, dtype=torch.float64) for size in sizes)
    out = attention(q, k, v, **how)
    start = torch.randn(2, 3, *out.shape[1:], dtype=torch.float64)
    for mode in ("attnlrp", "cp_lrp"):
        explainer = fastlrp.Explainer(Attention(call), mode)
        found = explainer((q, k, v), start * out.unsqueeze(1))
        leaves = [t.clone().requires_grad_() for t in (q, k, v)]
        y = attention(*leaves, **how, mode=mode)
        for target in range(3):
            gradients = torch.autograd.grad(y, leaves, start[:, target], retain_graph=True, allow_unused=True)
            for part, leaf, gradient in zip(found, leaves, gradients, strict=True):
                got = torch.zeros_like(leaf) if part is None else part[:, target]
                expected = torch.zeros_like(leaf) if gradient is None else gradient * leaf.detach()
                torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
        if mode == "attnlrp":
            report = explainer.verify((q, k, v), start * out.unsqueeze(1))
            assert report.ok, str(report)
            assert report.end_to_end < 1e-10


@pytest.mark.parametrize("width", [2, 3])
@pytest.mark.parametrize(
    ("dtype", "number", "tolerance"),
    [(torch.float64, -1e9, 1e-6), (torch.float64, -1e15, 1e-9), (torch.float64, -1e30, 1e-9),
     (torch.float32, -1e4, 1e-3), (torch.float32, -1e9, 1e-5), (torch.float32, -1e20, 1e-5)],
)  # fmt: skip
def test_rows_that_are_masked_everywhere_by_a_large_number(dtype, number, tolerance, width):
    """Their log-sum-exps lose the logarithm of their number of keys, or a part of it."""
    mask = torch.zeros(3, 5, dtype=torch.float64)
    mask[1], mask[2, 1:] = number, number
    given = mask.to(dtype)
    if dtype == torch.float32 and number < -1e8:
        mask = mask * 1e15  # Scores beside it are lost in rounding.
    q, k, v = (torch.randn(2, 4, *size, dtype=torch.float64) for size in ((3, 2), (5, 2), (5, width)))
    explainer = fastlrp.Explainer(Attention(lambda q, k, v: sdpa(q, k, v, attn_mask=given)), "attnlrp")
    tensors = tuple(t.to(dtype) for t in (q, k, v))
    out = attention(q, k, v, mask)
    with explainer.forward(tensors) as record:
        torch.testing.assert_close(record.output.double(), out, rtol=tolerance, atol=tolerance)
        found = record.relevance(out.unsqueeze(1).to(dtype))
    leaves = [t.clone().requires_grad_() for t in (q, k, v)]
    gradients = torch.autograd.grad(attention(*leaves, mask, mode="attnlrp").sum(), leaves)
    for got, leaf, gradient in zip(found, leaves, gradients, strict=True):
        torch.testing.assert_close(got[:, 0].double(), gradient * leaf.detach(), rtol=tolerance, atol=tolerance)


def test_masks_that_are_inputs():
    """Padding as booleans, one sample with nothing at all; a bias from the input takes a share."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, 2, 4, 3, dtype=torch.float64) for _ in range(3))
    allowed = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]]).bool()[:, None, None]
    model = Attention(lambda q, k, v, mask: F.scaled_dot_product_attention(q, k, v, attn_mask=mask))
    start = torch.randn(3, 2, 2, 4, 3, dtype=torch.float64)
    out = attention(q, k, v, allowed)
    found = fastlrp.Explainer(model, "attnlrp")((q, k, v, allowed), start * out.unsqueeze(1))
    leaf = v.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(attention(q, k, leaf, allowed, mode="attnlrp"), leaf, start[:, 1])
    torch.testing.assert_close(found[2][:, 1], gradient * v, rtol=1e-10, atol=1e-12)
    assert not found[0][2].any()
    assert not any(part[0, :, :, 2:].any() for part in found[1:3])

    hidden = torch.zeros(allowed[:2].shape, dtype=torch.float64).masked_fill(~allowed[:2], -math.inf)
    some, given = (q[:2], k[:2], v[:2]), start[:2] * out[:2].unsqueeze(1)
    with pytest.raises(ValueError, match=r"input '3' contains 2 NaN or infinite .* mask.clamp\(min=-1e9\)"):
        fastlrp.Explainer(model, "attnlrp")((*some, hidden), given)
    clamped = fastlrp.Explainer(model, "attnlrp")((*some, hidden.clamp(min=-1e9)), given)
    for got, expected in zip(clamped[:3], found[:3], strict=True):
        torch.testing.assert_close(got, expected[:2], rtol=1e-10, atol=1e-12)

    biased = Attention(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=q @ k.transpose(-1, -2)))
    explainer = fastlrp.Explainer(biased, "attnlrp")
    bias = q @ k.transpose(-1, -2)
    found = explainer((q, k, v), start * attention(q, k, v, bias).unsqueeze(1))
    leaf = q.clone().requires_grad_()
    quarter = divided(leaf, 4) @ k.transpose(-1, -2)
    (gradient,) = torch.autograd.grad(attention(leaf, k, v, quarter, mode="attnlrp"), leaf, start[:, 0])
    torch.testing.assert_close(found[0][:, 0], gradient * q, rtol=1e-10, atol=1e-12)
    assert explainer.verify((q, k, v), start).ok


def test_the_output_is_the_models():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 4, 9, 8) for _ in range(3))
    explainer = fastlrp.Explainer(
        Attention(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True)), "attnlrp"
    )
    output = explainer.forward((q, k, v)).output
    torch.testing.assert_close(output, F.scaled_dot_product_attention(q, k, v, is_causal=True), rtol=1e-5, atol=1e-6)


def _bmm(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.bmm(torch.softmax(torch.bmm(q, k.transpose(1, 2)) / math.sqrt(3), -1), v)


def _baddbmm(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    bias = torch.linspace(-1, 1, 4, dtype=q.dtype).expand(len(q), 4, 4)
    scores = torch.baddbmm(bias, q, k.transpose(1, 2), beta=0.5, alpha=3**-0.5)
    return torch.bmm(scores.softmax(-1).to(q.dtype), v)


def _einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.einsum("bid,bjd->bij", q, k).mul(3**-0.5).softmax(-1)
    return torch.einsum("bij,bjd->bid", F.dropout(weights, 0.2, training=False), v)


def test_query_key_and_value_are_one():
    """All three shares add up at the same tensor."""
    torch.manual_seed(0)
    x = torch.randn(2, 2, 3, 4, dtype=torch.float64)

    class Itself(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, x, x)

    start = torch.randn(2, 1, 2, 3, 4, dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    y = attention(leaf, leaf, leaf, mode="attnlrp")
    (gradient,) = torch.autograd.grad(y, leaf, start[:, 0])
    explainer = fastlrp.Explainer(Itself(), "attnlrp")
    found = explainer(x, start * y.detach().unsqueeze(1))
    torch.testing.assert_close(found[:, 0], gradient * x, rtol=1e-10, atol=1e-12)
    assert explainer.verify(x, start).ok


def _masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    hidden = torch.ones(4, 4, dtype=torch.bool).triu(1)
    scores = (q @ k.transpose(1, 2) * 3**-0.5).masked_fill(hidden, float("-inf"))
    return scores.softmax(-1).masked_fill(hidden, 0.0) @ v


WRITTEN = {
    "bmm": (_bmm, {}),
    "baddbmm": (_baddbmm, {"mask": 0.5 * torch.linspace(-1, 1, 4, dtype=torch.float64).expand(4, 4)}),
    "einsum": (_einsum, {}),
    "masked": (_masked, {"causal": True}),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_written_out(name):
    """Products and softmax give what the fused operation gives. Worst measured: 1e-14."""
    call, how = WRITTEN[name]
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 4, 3, dtype=torch.float64) for _ in range(3))
    out = attention(q, k, v, **how)
    start = torch.randn(2, 2, 4, 3, dtype=torch.float64)
    for mode in ("attnlrp", "cp_lrp"):
        explainer = fastlrp.Explainer(Attention(call), mode)
        found = explainer((q, k, v), start * out.unsqueeze(1))
        leaves = [t.clone().requires_grad_() for t in (q, k, v)]
        gradients = torch.autograd.grad(attention(*leaves, **how, mode=mode), leaves, start[:, 1], allow_unused=True)
        for part, leaf, gradient in zip(found, leaves, gradients, strict=True):
            got = torch.zeros_like(leaf) if part is None else part[:, 1]
            expected = torch.zeros_like(leaf) if gradient is None else gradient * leaf.detach()
            torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
        assert explainer.verify((q, k, v), start * out.unsqueeze(1)).ok
    assert fastlrp.Explainer(Attention(call), "epsilon_plus").verify((q, k, v), start).ok


def test_a_softmax_that_weighs_nothing_is_an_activation():
    """At a network's end, or as a gate of an element-wise product."""

    class Gate(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x.softmax(-1) * x).softmax(-1)

    plan = fastlrp.Explainer(Gate(), "epsilon_plus", example_inputs=torch.randn(1, 4)).plan
    assert [node.kind for node in plan.graph.nodes] == ["activation", "mul", "activation"]


def test_errors():
    x = torch.randn(1, 2, 3, 4)
    random = Attention(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, dropout_p=0.1))
    with pytest.raises(fastlrp.UnsupportedOperationError, match=r"dropout_p=0\.1"):
        fastlrp.Explainer(random, "attnlrp")((x, x, x), torch.ones(1, 1, 2, 3, 4))
    plain = Attention(F.scaled_dot_product_attention)
    with pytest.raises(TypeError, match="use Uniform, ValueOnly, Heads or Gradient"):
        fastlrp.Explainer(plain, composite(rules.ZPlus()))((x, x, x), torch.ones(1, 1, 2, 3, 4))
    relative = composite(rules.Uniform(fastlrp.Stabilizer(0.1, relative="sample")))
    with pytest.raises(TypeError, match="one absolute epsilon"):
        fastlrp.Explainer(plain, relative)((x, x, x), torch.ones(1, 1, 2, 3, 4))


@pytest.mark.parametrize("name", ["attnlrp", "cp_lrp", "gradient"])
def test_one_key_head_for_all_queries_by_broadcasting(name: str) -> None:
    """Keys ``(B, 1, T, D)`` and values without an axis of heads: the same as when they are repeated by hand."""

    def repeated(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k.expand(-1, 3, -1, -1), v[:, None].expand(-1, 3, -1, -1))

    def shared(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v[:, None])

    torch.manual_seed(0)
    x = tuple(torch.randn(shape, dtype=torch.float64) for shape in ((2, 3, 4, 5), (2, 1, 6, 5), (2, 6, 2)))
    start = torch.randn(2, 3, 3, 4, 2, dtype=torch.float64)
    explainer = fastlrp.Explainer(Attention(shared), name)
    by_hand = fastlrp.Explainer(Attention(repeated), name)(x, start)
    for found, expected in zip(explainer(x, start), by_hand, strict=True):
        assert (found is None) == (expected is None)
        if found is not None:
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    report = explainer.verify(x, start)
    assert report.ok, str(report)


def test_a_mask_by_vmap():
    """Masks by ``torch.vmap`` over samples, queries and keys, as transformers 4 makes them, are masks as any."""

    def by_vmap(q: Tensor, k: Tensor, v: Tensor, padding: Tensor) -> Tensor:
        def attends(is_word: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return (j <= i) & is_word

        of_keys = torch.vmap(attends, in_dims=(0, None, 0))
        of_queries = torch.vmap(of_keys, in_dims=(None, 0, None))
        places = torch.arange(q.shape[2])
        mask = torch.vmap(of_queries, in_dims=(0, None, None))(padding, places, places)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask.unsqueeze(1))

    def plain(q: Tensor, k: Tensor, v: Tensor, padding: Tensor) -> Tensor:
        mask = torch.ones(5, 5, dtype=torch.bool).tril() & padding[:, None, None, :]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    torch.manual_seed(0)
    inputs = [torch.randn(3, 2, 5, 4, dtype=torch.float64) for _ in range(3)]
    padding = torch.tensor([[True] * 5, [True] * 3 + [False] * 2, [True, False, True, False, True]])
    start = torch.randn(3, 2, 2, 5, 4, dtype=torch.float64)
    explainer = fastlrp.Explainer(Attention(by_vmap), "attnlrp")
    for found, expected in zip(
        explainer((*inputs, padding), start), fastlrp.explain(Attention(plain), (*inputs, padding), start, "attnlrp"),
        strict=True,
    ):  # fmt: skip
        if expected is not None:
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    assert explainer.verify((*inputs, padding), start).ok
