"""Operations of public models, one by one: relevance against the definition, the gradient, and each sample alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import fastlrp
from fastlrp import composites, rules
from tests.models.cases import Body
from tests.models.kind_cases import Case, check_definition, model_of, relevance_of


def _passes(function: Callable[[Tensor], Tensor]) -> Case:
    """An element-wise function passes relevance on."""
    return Case(lambda m, h: function(h), surrogate=lambda m, h: h * (function(h) / h).detach())


def _cosine(m: Any, h: Tensor, other: Tensor) -> Tensor:
    return ((h / h.norm(dim=1, keepdim=True).detach()) * (other / other.norm(dim=1, keepdim=True).detach())).sum(1)


def _soft_maximum(m: Any, h: Tensor) -> Tensor:
    """Shares ``softmax(h)`` of what arrives, the result times a weight."""
    y = h.logsumexp(1, keepdim=True)
    return (h * (h.softmax(1) * y / h).detach()).sum(1, keepdim=True)


def _soft_pair(a: Tensor, b: Tensor) -> Tensor:
    """Shares of ``exp(a)`` and ``exp(b)`` in what arrives."""
    y, pair = torch.logaddexp(a, b), torch.stack([a, b])
    return (pair * (pair.softmax(0) * y / pair).detach()).sum(0)


IMAGE = (2, 4, 4)
MATRIX = (2, 4)
CASES: dict[str, Case] = {
    "max": Case(lambda m, h: h.max(1)[0][:, None]),
    "max_keepdim": Case(lambda m, h: h.max(2, keepdim=True).values, shape=MATRIX),
    "max_of_two": Case(lambda m, h: torch.max(h, h.flip(1))),
    "min": Case(lambda m, h: h.min(-1)[0], shape=MATRIX),
    "amax": Case(lambda m, h: h.amax(1), shape=MATRIX),
    "amax_of_axes": Case(lambda m, h: h.amax((1, 3), keepdim=True), shape=IMAGE),
    "amin": Case(lambda m, h: h.amin((1, 2))[:, None], shape=MATRIX),
    "aminmax": Case(lambda m, h: torch.cat(torch.aminmax(h, dim=1, keepdim=True), 1)),
    "maximum": Case(lambda m, h: torch.maximum(h * m.p, h.roll(1, 1))),
    "maximum_of_itself": Case(lambda m, h: torch.maximum(h, h)),
    "maximum_broadcast": Case(lambda m, h: torch.maximum(h, h[:, :1])),
    "maximum_of_a_constant": Case(lambda m, h: torch.maximum(h, m.p), conserves=False),
    "minimum": Case(lambda m, h: torch.minimum(h, h[:, 3:4] * m.p)),
    "fmax": Case(lambda m, h: torch.fmax(h * m.p, h.roll(1, 1))),
    "fmin": Case(lambda m, h: torch.fmin(h * m.p, h.roll(1, 1))),
    "median": Case(lambda m, h: h.median(1)[0][:, None]),
    "kthvalue": Case(lambda m, h: h.kthvalue(3, 1)[0][:, None]),
    "mode": Case(lambda m, h: h.mode(1)[0][:, None]),
    "topk": Case(lambda m, h: h.topk(3)[0]),
    "topk_smallest": Case(lambda m, h: h.topk(2, 1, largest=False)[0], shape=MATRIX),
    "sort": Case(lambda m, h: h.sort(1, descending=True)[0] * m.p),
    "sort_stable": Case(lambda m, h: h.sort(dim=1, stable=True)[0] * m.p),
    "cummax": Case(lambda m, h: h.cummax(1)[0]),
    "cummin": Case(lambda m, h: h.cummin(2)[0], shape=MATRIX),
    "clamp_of_tensors": Case(lambda m, h: h.clamp(h.roll(1, 1), h.roll(2, 1))),
    "logsumexp": Case(lambda m, h: h.logsumexp(1, keepdim=True), surrogate=_soft_maximum),
    "norm": Case(lambda m, h: h.norm(dim=1, keepdim=True)),
    "norm_of_order_3": Case(lambda m, h: h.norm(3, 1), shape=MATRIX),
    "vector_norm": Case(lambda m, h: torch.linalg.vector_norm(h, 1, (1, 2))[:, None], shape=MATRIX),
    "std": Case(lambda m, h: h.std(1, keepdim=True)),
    "var": Case(lambda m, h: h.var(1, keepdim=True), degree=2),
    "std_mean": Case(lambda m, h: torch.cat(torch.std_mean(h, 1, keepdim=True), 1)),
    "prod": Case(lambda m, h: h.prod(1), degree=2, shape=MATRIX),
    "cumprod_of_two": Case(
        lambda m, h: h.cumprod(1), shape=(2, 4),
        surrogate=lambda m, h: torch.stack([h[:, 0], (h[:, 0] * h[:, 1].detach() + h[:, 0].detach() * h[:, 1]) / 2], 1),
    ),
    "cdist": Case(lambda m, h: torch.cdist(h, h * m.p[:4]), shape=MATRIX),
    "cdist_of_a_constant": Case(lambda m, h: torch.cdist(h, m.w[None, :3, :4].expand(len(h), 3, 4)), shape=MATRIX,
                                conserves=False),
    "pairwise_distance": Case(lambda m, h: F.pairwise_distance(h, h.flip(1) * m.p)[:, None], conserves=False),
    "cosine_similarity": Case(
        lambda m, h: F.cosine_similarity(h, h.flip(1) * m.p)[:, None], degree=2,
        surrogate=lambda m, h: _cosine(m, h, h.flip(1) * m.p)[:, None],
    ),
    "cosine_of_a_constant": Case(
        lambda m, h: F.cosine_similarity(h, m.p[None])[:, None],
        surrogate=lambda m, h: _cosine(m, h, m.p[None])[:, None],
    ),
    "cosine_of_a_row_for_all": Case(
        lambda m, h: F.cosine_similarity(h, m.p[:4], dim=-1), shape=MATRIX,
        surrogate=lambda m, h: ((h / h.norm(dim=2, keepdim=True).detach()) * (m.p[:4] / m.p[:4].norm())).sum(2),
    ),
    "cosine_of_rows_for_all": Case(
        lambda m, h: F.cosine_similarity(h, m.w[:2, :4], dim=2), shape=MATRIX,
        surrogate=lambda m, h: (
            (h / h.norm(dim=2, keepdim=True).detach()) * (m.w[:2, :4] / m.w[:2, :4].norm(dim=1, keepdim=True))
        ).sum(2),
    ),
    "diff": Case(lambda m, h: (h * m.p).diff(dim=1)),
    "diff_along": Case(lambda m, h: h.diff(dim=-2), shape=MATRIX),
    "logaddexp": Case(
        lambda m, h: torch.logaddexp(h[:, :4], h[:, 4:] * m.p[:4]),
        surrogate=lambda m, h: _soft_pair(h[:, :4], h[:, 4:] * m.p[:4]),
    ),
    "normalize": Case(
        lambda m, h: F.normalize(h), surrogate=lambda m, h: h / h.norm(dim=1, keepdim=True).detach()
    ),
    "bilinear_constant": Case(lambda m, h: F.bilinear(h, m.p.expand(len(h), 8), m.w.expand(2, 8, 8))),
    "einsum_of_three": Case(lambda m, h: torch.einsum("bi,bj,bi->bj", h, h.flip(1), h * m.p), degree=3),
    "baddbmm": Case(
        lambda m, h: torch.baddbmm(h, h, m.w[:4, :4].expand(len(h), 4, 4), beta=0.5, alpha=2), shape=MATRIX
    ),
    "addmm": Case(lambda m, h: torch.addmm(h, h, m.w, beta=2, alpha=0.5)),
    "mv": Case(lambda m, h: torch.mv(h, m.p)[:, None]),
    "scatter_add": Case(lambda m, h: (h * m.p).scatter_add(1, h.argsort(1), h)),
    "scatter_add_number": Case(
        lambda m, h: torch.ones_like(h).scatter_add(1, h.argsort(1)[:, :3], h[:, 2:5]), conserves=False
    ),
    "scatter_reduce": Case(lambda m, h: h.scatter_reduce(1, h.argsort(1), h * m.p, "sum")),
    "index_add": Case(lambda m, h: h.index_add(1, torch.tensor([0, 0, 3]), h[:, :3], alpha=2)),
    "index_put_accumulate": Case(
        lambda m, h: torch.ops.aten.index_put(h, [None, torch.tensor([0, 0])], h[:, :2], True)
    ),
    "as_strided": Case(lambda m, h: (h * 2).as_strided((len(h), 3, 4), (8, 2, 1))),
    "max_pool_indices": Case(
        lambda m, h: F.max_unpool2d(*F.max_pool2d(h, 2, return_indices=True), 2), shape=IMAGE
    ),
    "grid_sample": Case(
        lambda m, h: F.grid_sample(h, (h[:, :1, :3, :2].movedim(1, -1) * m.p[:2]).tanh(), align_corners=False),
        surrogate=lambda m, h: F.grid_sample(
            h, (h[:, :1, :3, :2].movedim(1, -1) * m.p[:2]).tanh().detach(), align_corners=False),
        shape=IMAGE,
    ),
    "affine_grid": Case(
        lambda m, h: F.grid_sample(
            h, F.affine_grid(m.w[:2, :3].expand(len(h), 2, 3), [len(h), 2, 3, 3], False), align_corners=False
        ),
        shape=IMAGE,
    ),
    "glu": Case(lambda m, h: F.glu(h, 1), shape=MATRIX,
                surrogate=lambda m, h: h[:, :1] * h[:, 1:].sigmoid().detach()),
    "reciprocal_gate": Case(
        lambda m, h: h * (1 + h.square()).reciprocal(), surrogate=lambda m, h: h / (1 + h.square()).detach()
    ),
    "standardised_by_hand": Case(
        lambda m, h: h * (h.var(1, keepdim=True) + 1e-5).rsqrt(),
        surrogate=lambda m, h: h * (h.var(1, keepdim=True) + 1e-5).rsqrt().detach(),
    ),
    **{
        name: _passes(function)
        for name, function in {
            "sqrt": lambda h: h.abs().sqrt(), "sin": torch.sin, "cos": torch.cos, "tan": torch.tan,
            "atan": torch.atan, "erf": torch.erf, "log1p": lambda h: h.square().log1p(), "expm1": torch.expm1,
            "sinh": torch.sinh, "sign": torch.sign, "round": lambda h: (4 * h).round(), "exp2": torch.exp2,
            "log2": lambda h: h.exp().exp().log2(), "sinc": torch.sinc, "power": lambda h: 2**h,
            "asinh": torch.asinh, "remainder": lambda h: h % 2,
        }.items()
    },
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_relevance_by_the_definition(name: str) -> None:
    check_definition(CASES[name])


def test_fractions_by_hand() -> None:
    x = torch.tensor([[3.0, 4.0, 4.0, 1.0]]).double()
    for function, expected in (
        (lambda x: x.amax(1, keepdim=True), [0, 6, 6, 0]),  # Equal entries share.
        (lambda x: x.max(1, keepdim=True)[0], [0, 12, 0, 0]),  # The first of them is the one that is returned.
        (lambda x: torch.maximum(x[:, :2], x[:, 1:3]), [0, 12, 0, 0]),
        (lambda x: torch.maximum(x[:, 1:2], x[:, 2:3]), [0, 6, 6, 0]),
        (lambda x: x[:, :2].norm(dim=1, keepdim=True), [12 * 9 / 25, 12 * 16 / 25, 0, 0]),
        (lambda x: x[:, :2].prod(1, keepdim=True), [6, 6, 0, 0]),
        (lambda x: x[:, 1:].prod(1, keepdim=True), [0, 4, 4, 4]),
        (lambda x: x.kthvalue(1, 1, keepdim=True)[0], [0, 0, 0, 12]),
        (lambda x: x[:, 2:].log().logsumexp(1, keepdim=True), [0, 0, 12 * 4 / 5, 12 / 5]),
        # |(3, 4) - (4, 1)|: differences -1 and 3, of which each entry takes its part.
        (
            lambda x: torch.cdist(x[:, None, :2], x[:, None, 2:]),
            [12 * 3 * -1 / 10, 12 * 4 * 3 / 10, -12 * 4 * -1 / 10, -12 * 1 * 3 / 10],
        ),
        (lambda x: F.glu(x[:, :2], 1), [12, 0, 0, 0]),
    ):  # fmt: skip
        found = relevance_of(function, x)
        torch.testing.assert_close(found, torch.tensor([expected], dtype=torch.float64), rtol=1e-5, atol=1e-5)


def test_a_rule_that_is_not_defined() -> None:
    for name, kind, use in (
        ("amax", "chosen", "Pass"), ("norm", "homogeneous", "Norm"), ("logsumexp", "logsumexp", "Norm"),
        ("grid_sample", "grid_sample", "Norm"),
    ):  # fmt: skip
        model, x = model_of(CASES[name])
        composite = composites.lrp0().with_entries((composites.kind(kind), rules.Deconvnet()))
        with pytest.raises(TypeError, match=rf"Deconvnet\(\) is not defined for .*use {use}\b.*or Gradient"):
            fastlrp.explain(model, x, [0], composite)


def test_an_epsilon_that_a_soft_maximum_would_not_read() -> None:
    model, x = model_of(CASES["logsumexp"])
    composite = composites.lrp0().with_entries((composites.kind("logsumexp"), rules.Epsilon(0.5)))
    with pytest.raises(TypeError, match=r"Epsilon\(epsilon=0.5.* is not defined for .*use Norm or Gradient"):
        fastlrp.explain(model, x, [0], composite)


REFUSED: dict[str, tuple[str, Body]] = {
    "largest_of_all": ("max.*(mixes samples|batch)", lambda m, h: h / h.max()),
    "largest_of_the_batch": ("amax.*axis 0, the batch", lambda m, h: h - h.amax(0)),
    "norm_of_all": ("norm.*(mixes samples|batch)", lambda m, h: h / h.norm()),
    "order_zero": (r"no rule for operation 'norm'|no rule for operation 'linalg_vector_norm'",
                   lambda m, h: h.norm(0, 1, keepdim=True) + h),
    "layout": ("as_strided.*does not lie in memory.*contiguous", lambda m, h: h.t().as_strided((len(h), 8), (8, 1))),
    "added_to_other_samples": (
        "one sample into another|mixes samples|index_add",
        lambda m, h: torch.zeros_like(h).index_add(0, h[:, 0].argsort(), h),
    ),
    "pdist": ("batch", lambda m, h: F.pdist(h)[:, None].expand(-1, 8)[: len(h)]),
    "unique": ("data", lambda m, h: h + h.unique().shape[0]),
    "grid_of_the_input": (
        "no rule for operation 'grid_sampler'",
        lambda m, h: F.grid_sample(m.w.expand(len(h), 1, 8, 8), h.view(-1, 2, 2, 2), align_corners=False).flatten(1),
    ),
    "scatter_multiply": ("no rule for operation 'scatter'",
                         lambda m, h: h.scatter(1, h.argsort(1), h, reduce="multiply")),
    "angle": ("no rule for operation 'atan2'.*longer or shorter", lambda m, h: torch.atan2(h, h.flip(1))),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_a_reason(name: str) -> None:
    message, body = REFUSED[name]
    model, x = model_of(Case(lambda m, h: h))
    model.body = lambda m, x: m.last(body(m, m.a(x)).flatten(1)[:, :1] * m.p)
    with pytest.raises(fastlrp.CaptureError, match=message):
        fastlrp.explain(model, x, [0], "epsilon_plus")


def test_weights_that_are_standardised_by_a_batch_norm() -> None:
    """timm's convolutions with standardised weights run a training batch norm over the weight, which is a constant."""

    def standardised(m: Any, x: Tensor) -> Tensor:
        weight = F.batch_norm(m.a.weight[None], None, None, training=True)[0]
        return m.last(F.linear(x, weight, m.a.bias))

    model, x = model_of(Case(lambda m, h: h))
    model.body = standardised
    report = fastlrp.Explainer(model, "epsilon_plus").verify(x, "all")
    assert report.ok, str(report)
