"""Scaled dot-product attention: by hand, and against autograd with masks and shapes of all sorts, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastlrp
from fastlrp import composites, rules
from fastlrp.composites import kind
from tests.transformers.oracle import attention


class Attention(nn.Module):
    def __init__(self, call: Callable[..., Tensor]) -> None:
        super().__init__()
        self.call = call

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *more: Tensor) -> Tensor:
        return self.call(q, k, v, *more)


def composite(rule: rules.Rule) -> composites.Composite:
    return composites.attnlrp().with_entries((kind("attention"), rule))


def test_two_positions_by_hand():
    """Scores ``(ln 3, 0)``, weights ``(3/4, 1/4)``, output ``4 * 3/4 + 8 * 1/4 = 5``, all of which is explained.

    Values: half, ``(3/2, 1)``. Weights: the other half, ``(3/2, 1)``. Scores: ``ln 3 (3/2 - 3/4 * 5/2)`` and 0, of which
    query and key get half each.
    """
    q, k, v = (torch.tensor([[n]], dtype=torch.float64).view(1, 1, -1, 1) for n in ([1.0], [math.log(3), 0.0], [4.0, 8.0]))
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
    q, k, v = (torch.tensor([[n]], dtype=torch.float64).view(1, 1, -1, 1) for n in ([1.0], [math.log(3), 0.0], [4.0, 8.0]))
    model = Attention(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=1.0))
    found = fastlrp.Explainer(model, composite(rules.Uniform(1.0)))((q, k, v), torch.full((1, 1, 1, 1, 1), 6.0).double())
    of_score = -0.375 * math.log(3) * math.log(3) / (math.log(3) + 1)
    assert found[2].flatten().tolist() == pytest.approx([1.5, 1.0], rel=1e-13)
    assert found[0].flatten().tolist() == pytest.approx([of_score / 2], rel=1e-13)


SEED = torch.Generator().manual_seed(3)
ROWS = torch.rand(3, 5, generator=SEED) > 0.4
ROWS[1] = False
BIAS = torch.randn(4, 3, 5, generator=SEED, dtype=torch.float64)
sdpa = F.scaled_dot_product_attention

# name: (the model's call, the same for the oracle, sizes of q, k, v and further inputs after the batch)
CASES = {
    "plain": (sdpa, attention, [(4, 3, 2)] * 3),
    "causal": (lambda q, k, v: sdpa(q, k, v, is_causal=True), lambda q, k, v, **a: attention(q, k, v, causal=True, **a), [(4, 3, 2)] * 3),
    "causal, more keys": (lambda q, k, v: sdpa(q, k, v, is_causal=True), lambda q, k, v, **a: attention(q, k, v, causal=True, **a), [(1, 3, 2), (1, 5, 2), (1, 5, 4)]),
    "cross, one query": (sdpa, attention, [(2, 1, 3), (2, 5, 3), (2, 5, 4)]),
    "rows that attend to nothing": (lambda q, k, v: sdpa(q, k, v, attn_mask=ROWS), lambda q, k, v, **a: attention(q, k, v, ROWS, **a), [(4, 3, 2), (4, 5, 2), (4, 5, 2)]),
    "bias per head": (lambda q, k, v: sdpa(q, k, v, attn_mask=BIAS), lambda q, k, v, **a: attention(q, k, v, BIAS, **a), [(4, 3, 2), (4, 5, 2), (4, 5, 2)]),
    "grouped keys": (lambda q, k, v: sdpa(q, k, v, enable_gqa=True), attention, [(4, 3, 2), (2, 5, 2), (2, 5, 3)]),
    "scale": (lambda q, k, v: sdpa(q, k, v, scale=0.3), lambda q, k, v, **a: attention(q, k, v, scale=0.3, **a), [(4, 3, 2)] * 3),
    "no heads": (sdpa, attention, [(3, 2), (5, 2), (5, 4)]),
    "two axes of heads": (lambda q, k, v: sdpa(q, k, v, attn_mask=ROWS), lambda q, k, v, **a: attention(q, k, v, ROWS, **a), [(2, 2, 3, 2), (2, 2, 5, 2), (2, 2, 5, 2)]),
    "itself": (lambda q, k, v: sdpa(q, q, q) + k + v, lambda q, k, v, **a: attention(q, q, q, **a) + k + v, [(2, 3, 4)] * 3),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_equals_autograd(name):
    """Also the textbook, targets one by one and samples alone. Worst measured: 1e-14."""
    call, by_hand, sizes = CASES[name]
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, *size, dtype=torch.float64) for size in sizes)
    out = by_hand(q, k, v)
    start = torch.randn(2, 3, *out.shape[1:], dtype=torch.float64)
    for mode in ("attnlrp", "cp_lrp"):
        explainer = fastlrp.Explainer(Attention(call), mode)
        found = explainer((q, k, v), start * out.unsqueeze(1))
        leaves = [t.clone().requires_grad_() for t in (q, k, v)]
        y = by_hand(*leaves, mode=mode)
        for target in range(3):
            gradients = torch.autograd.grad(y, leaves, start[:, target], retain_graph=True, allow_unused=True)
            for part, leaf, gradient in zip(found, leaves, gradients, strict=True):
                got = torch.zeros_like(leaf) if part is None else part[:, target]
                expected = torch.zeros_like(leaf) if gradient is None else gradient * leaf.detach()
                torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
        if mode == "attnlrp":
            report = explainer.verify((q, k, v), start * out.unsqueeze(1))
            assert report.ok and report.end_to_end < 1e-10, str(report)


def test_masks_that_are_inputs():
    """Padding as booleans, one sample with nothing at all; a bias from the input gets no relevance."""
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
    assert not found[0][2].any() and not found[2][0, :, :, 2:].any() and not found[1][0, :, :, 2:].any()

    biased = Attention(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=q @ k.transpose(-1, -2)))
    explainer = fastlrp.Explainer(biased, "attnlrp")
    bias = q @ k.transpose(-1, -2)
    found = explainer((q, k, v), start * attention(q, k, v, bias).unsqueeze(1))
    leaf = q.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(attention(leaf, k, v, bias, mode="attnlrp"), leaf, start[:, 0])
    torch.testing.assert_close(found[0][:, 0], gradient * q, rtol=1e-10, atol=1e-12)
    assert explainer.verify((q, k, v), start).ok


def test_the_output_is_the_models():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 4, 9, 8) for _ in range(3))
    explainer = fastlrp.Explainer(Attention(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True)), "attnlrp")
    output = explainer.forward((q, k, v)).output
    torch.testing.assert_close(output, F.scaled_dot_product_attention(q, k, v, is_causal=True), rtol=1e-5, atol=1e-6)


def test_errors():
    x = torch.randn(1, 2, 3, 4)
    random = Attention(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, dropout_p=0.1))
    with pytest.raises(fastlrp.UnsupportedOperationError, match=r"dropout_p=0\.1"):
        fastlrp.Explainer(random, "attnlrp")((x, x, x), torch.ones(1, 1, 2, 3, 4))
    plain = Attention(F.scaled_dot_product_attention)
    with pytest.raises(TypeError, match="use Uniform, ValueOnly or Gradient"):
        fastlrp.Explainer(plain, composite(rules.ZPlus()))((x, x, x), torch.ones(1, 1, 2, 3, 4))
    relative = composite(rules.Uniform(fastlrp.Stabilizer(0.1, relative="sample")))
    with pytest.raises(TypeError, match="one absolute epsilon"):
        fastlrp.Explainer(plain, relative)((x, x, x), torch.ones(1, 1, 2, 3, 4))
