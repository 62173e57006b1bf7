"""Functions that are written out as others, mapped functions and largest entries by place: against the definition."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastlrp
from fastlrp import UnsupportedOperationError
from tests.directions.adjoint import LARGEST, errors_of_steps
from tests.models.cases import Written, linear
from tests.models.kind_cases import Case, check_definition, model_of, relevance_of


def _running(m: Any, h: Tensor) -> Tensor:
    """Shares ``softmax`` of the entries so far, the result times a weight."""
    parts = []
    for i in range(1, h.shape[1] + 1):
        own = h[:, :i]
        shares = (own.softmax(1) * own.logsumexp(1, keepdim=True) / own).detach()
        parts.append((own * shares).sum(1))
    return torch.stack(parts, 1)


def _base_two(a: Tensor, b: Tensor) -> Tensor:
    y, pair = torch.logaddexp2(a, b), torch.stack([a, b])
    return (pair * ((pair * math.log(2)).softmax(0) * y / pair).detach()).sum(0)


def _of_the_class(m: Any, h: Tensor) -> Tensor:
    """The loss goes to the score of the class, all of it."""
    loss = -h.log_softmax(1).amax(1, keepdim=True)
    return h.amax(1, keepdim=True) * (loss / h.amax(1, keepdim=True)).detach()


CASES: dict[str, Case] = {
    "one_over": Case(lambda m, h: 1 / h.exp(), surrogate=lambda m, h: h * ((-h).exp() / h).detach()),
    "over_broadcast": Case(
        lambda m, h: m.p / h[:, :1], surrogate=lambda m, h: h[:, :1] * (m.p / h[:, :1] / h[:, :1]).detach()
    ),
    "inverse_gate": Case(
        lambda m, h: h * (2 / (1 + h.square())), surrogate=lambda m, h: h * (2 / (1 + h.square())).detach()
    ),
    "logcumsumexp": Case(lambda m, h: h.logcumsumexp(1), surrogate=_running),
    "diff_twice": Case(lambda m, h: h.diff(n=2, dim=1)),
    "diff_between": Case(
        lambda m, h: h.diff(dim=1, prepend=m.p[:1].expand(len(h), 1), append=h[:, :2]), conserves=False
    ),
    "logaddexp2": Case(
        lambda m, h: torch.logaddexp2(h[:, :4], h[:, 4:] * m.p[:4]),
        surrogate=lambda m, h: _base_two(h[:, :4], h[:, 4:] * m.p[:4]),
    ),
    "kron": Case(lambda m, h: torch.kron(h, m.w[:2, :3]), shape=(2, 4)),
    "kron_from_the_left": Case(lambda m, h: torch.kron(m.p[:2], h)),
    "outer": Case(lambda m, h: torch.outer(h[:, 0], m.p)),
    "solve": Case(lambda m, h: torch.linalg.solve(m.w[:4, :4], h), shape=(4, 2)),
    "cross_entropy": Case(
        lambda m, h: F.cross_entropy(h, h.argmax(1), reduction="none")[:, None], surrogate=_of_the_class
    ),
    "cross_entropy_at_positions": Case(
        lambda m, h: F.cross_entropy(h, h.argmax(1), reduction="none")[:, None], shape=(2, 4), surrogate=_of_the_class
    ),
    "cross_entropy_of_probabilities": Case(
        lambda m, h: F.cross_entropy(h, m.p.softmax(0).expand(len(h), 8), reduction="none")[:, None],
        surrogate=lambda m, h: -(h * (h.log_softmax(1) / h).detach() * m.p.softmax(0)).sum(1)[:, None],
    ),
    "largest_by_place": Case(lambda m, h: h.scatter_reduce(1, h.argsort(1) // 2, h * m.p, "amax")),
    "smallest_by_place": Case(
        lambda m, h: torch.zeros_like(h).scatter_reduce(1, h.argsort(1) // 2, h * m.p, "amin", include_self=False)
    ),
    "mean_by_place": Case(lambda m, h: h.scatter_reduce(1, h.argsort(1) // 2, h * m.p, "mean")),
    "vmap": Case(lambda m, h: torch.vmap(torch.relu)(h)),
    "vmap_of_two": Case(lambda m, h: torch.vmap(lambda a, b: torch.cat([a.relu(), b.cumsum(0) * m.p]))(h, h.flip(1))),
    "vmap_of_parts": Case(lambda m, h: torch.vmap(lambda row: row.chunk(2)[1] - row.max(0)[0])(h)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_relevance_by_the_definition(name: str) -> None:
    check_definition(CASES[name])


@pytest.mark.parametrize("name", ["logcumsumexp", "largest_by_place", "one_over", "kron", "cross_entropy", "vmap"])
def test_every_step_has_its_transpose(name: str) -> None:
    model, x = model_of(CASES[name])
    with fastlrp.Explainer(model, "gradient").forward(x) as record:
        for composite in ("gradient", "epsilon", "attnlrp"):
            assert max(errors_of_steps(record.under(composite)).values()) < LARGEST


def test_fractions_by_hand() -> None:
    x = torch.tensor([[1.0, 3.0, 2.0]]).double()
    for function, expected in (
        (lambda x: x.log().logcumsumexp(1)[:, 1:], [3.0, 9.0, 0.0]),
        (lambda x: x.diff(n=2, dim=1), [12 / -3, 12 * -6 / -3, 12 * 2 / -3]),  # 1 - 6 + 2 = -3.
        (lambda x: torch.zeros(1, 1).double().scatter_reduce(1, (x > 9).long(), x, "amax"), [0.0, 12.0, 0.0]),
        (lambda x: torch.kron(x[:, 1:], torch.tensor([2.0, -1.0]).double()), [0.0, 12.0, 0.0]),
        (lambda x: F.cross_entropy(x, torch.tensor([2]), reduction="none")[:, None], [0.0, 0.0, 12.0]),
        (lambda x: torch.vmap(lambda row: row[:2].sum(0, keepdim=True))(x), [3.0, 9.0, 0.0]),
    ):
        found = relevance_of(function, x)
        torch.testing.assert_close(found, torch.tensor([expected], dtype=torch.float64), rtol=1e-5, atol=1e-5)


class _Loss(nn.Module):
    """A loss for each sample, with what PyTorch's losses take."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.scores, self.options, self.w = nn.Linear(4, 3), options, nn.Parameter(torch.tensor([1.0, 2.0, 0.5]))

    def forward(self, x: Tensor, classes: Tensor) -> Tensor:
        of_class = {"weight": self.w.detach()} if self.options.get("weight") else {}
        options = {**self.options, **of_class, "reduction": "none"}
        if classes.is_floating_point() or "label_smoothing" in options:
            return F.cross_entropy(self.scores(x), classes, **options)[:, None]
        return F.nll_loss(self.scores(x).log_softmax(1), classes, **options)[:, None]


_MIXED = torch.tensor([[0.2, 0.5, 0.3], [0.0, 0.0, 1.0], [0.6, 0.4, 0.0]]).double()


@pytest.mark.parametrize("classes", [torch.tensor([2, -100, 1]), torch.tensor([1, 1, 0]), _MIXED], ids=str)
@pytest.mark.parametrize("options", [{}, {"weight": True}, {"label_smoothing": 0.2, "weight": True}], ids=str)
def test_losses_of_each_sample(options: dict[str, Any], classes: Tensor) -> None:
    """The gradient is autograd's; under LRP the ignored sample has none, and shares do not depend on other samples."""
    model, x = _Loss(**options).double().eval(), torch.randn(3, 4).double()
    point = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(model(point, classes).sum(), point)
    found = fastlrp.explain(model, (x, classes), [0], "gradient", initial="one")
    torch.testing.assert_close((found[0] if isinstance(found, tuple) else found)[:, 0], expected)
    explainer = fastlrp.Explainer(model, "lrp0")
    with explainer.forward((x, classes)) as record:
        torch.testing.assert_close(record.output, model(x, classes).detach())
        found = record.relevance([0])
    for i in range(3):
        alone = explainer((x[i : i + 1], classes[i : i + 1]), [0])
        for whole, part in zip(_tuple(found), _tuple(alone), strict=True):
            if whole is not None:  # Classes get no relevance.
                torch.testing.assert_close(whole[i : i + 1], part)
    if not classes.is_floating_point():
        assert bool(_tuple(found)[0][1].abs().sum() == 0) is bool(classes[1] == -100)
    assert explainer.verify((x, classes), [0]).ok


def _tuple(found: Any) -> tuple[Tensor, ...]:
    return found if isinstance(found, tuple) else (found,)


def test_a_weighted_loss_by_hand() -> None:
    """Loss ``-w log p = 2 log 2`` goes to the class's score: of z = 3 x + y at (1, 1) 3/4 and 1/4; of the ignored 0."""
    model = _Loss(weight=True, ignore_index=2).double().eval()
    with torch.no_grad():
        model.scores.weight.copy_(torch.tensor([[4.0, 0, 0, 0], [3.0, 1, 0, 0], [-99.0, 0, 0, 0]]))
        model.scores.bias.zero_()
    x = torch.tensor([[1.0, 1.0, 0.0, 0.0]], dtype=torch.float64).expand(2, 4)
    found = fastlrp.explain(model, (x, torch.tensor([1, 2])), [0], "lrp0")
    expected = 2 * math.log(2) * torch.tensor([[0.75, 0.25, 0, 0], [0, 0, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(_tuple(found)[0][:, 0], expected)


def test_a_class_that_there_is_not() -> None:
    explainer = fastlrp.Explainer(_Loss().double().eval(), "lrp0")
    for wrong in (3, -1):
        with pytest.raises(IndexError, match=rf"the loss is asked for class {wrong}, and the scores are of 3 classes"):
            explainer((torch.randn(2, 4).double(), torch.tensor([0, wrong])), [0])


def test_a_mapped_network_is_the_network() -> None:
    def of_a_sample(m: Any, row: Tensor) -> Tensor:
        return m.norm(m.a(row).relu()) * row.sum().sigmoid()

    members = {"a": nn.Linear(5, 6), "norm": nn.LayerNorm(6), "b": linear(6)}
    mapped = Written(lambda m, x: m.b(torch.vmap(lambda row: of_a_sample(m, row))(x)), **members).double().eval()
    plain = Written(
        lambda m, x: m.b(m.norm(m.a(x).relu()) * x.sum(1, keepdim=True).sigmoid()), **members
    ).double().eval()  # fmt: skip
    x = torch.randn(3, 5).double()
    for composite in ("epsilon_plus", "gradient"):
        explainer = fastlrp.Explainer(mapped, composite)
        torch.testing.assert_close(explainer(x, "all"), fastlrp.explain(plain, x, "all", composite))
        assert explainer.verify(x, "all").ok


REFUSED = {
    "over_another_axis": ("'vmap'.*another axis", lambda m, x: torch.vmap(torch.tanh, 1, 1)(x)),
    "mapped_twice": ("'vmap'.*maps twice", lambda m, x: torch.vmap(torch.vmap(torch.tanh))(x)),
    "inverse": ("'linalg_inv'.*linalg.solve", lambda m, x: torch.linalg.inv(x[:, :4].view(-1, 2, 2)).flatten(1)),
    "matrix_of_the_input": (
        "'linalg_solve'", lambda m, x: torch.linalg.solve(x[:, :4].view(-1, 2, 2), x[:, :2, None]).flatten(1)
    ),
    "rounded": ("'div'.*step function", lambda m, x: torch.div(x, 2, rounding_mode="floor")),
    "product_by_place": ("'scatter_reduce'", lambda m, x: x.scatter_reduce(1, x.argsort(1), x, "prod")),
    "loss_of_the_batch": ("reduction='none'", lambda m, x: F.cross_entropy(x, x.argmax(1)) * x),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_a_reason(name: str) -> None:
    message, body = REFUSED[name]
    model = Written(lambda m, x: m.last(body(m, x)), last=nn.LazyLinear(4), p=nn.Parameter(torch.rand(6))).double()
    x = torch.randn(3, 6).double()
    model(x)
    with pytest.raises(UnsupportedOperationError, match=message):
        fastlrp.explain(model.eval(), x, [0])


def test_exp_of_what_is_masked_with_infinity() -> None:
    """Gates of xLSTM: a sum of masked entries, less its largest, below an exp. No relevance is at minus infinity."""

    def body(m: Any, x: Tensor) -> Tensor:
        h = m.a(x)
        mask = torch.ones(4, 4, dtype=torch.bool).tril()
        logarithm = torch.where(mask, h.unsqueeze(2) - h.unsqueeze(1), -float("inf")) + h.unsqueeze(1)
        gates = (logarithm - logarithm.max(-1, keepdim=True).values).exp()
        return m.b((gates * h.unsqueeze(1)).sum(-1))

    model = Written(body, a=nn.Linear(5, 4), b=linear(4)).double().eval()
    x = torch.randn(3, 5).double()
    for composite in ("epsilon_plus", "attnlrp"):
        report = fastlrp.Explainer(model, composite).verify(x, "all")
        assert report.ok, str(report)
    point = x.clone().requires_grad_()
    expected = torch.autograd.grad(model(point)[:, 1].sum(), point)[0]
    torch.testing.assert_close(fastlrp.explain(model, x, 1, "gradient", initial="one")[:, 0], expected)


def test_entries_that_a_mask_of_the_models_own_takes() -> None:
    """How many they are is the mask's to say; whoever changes it captures the model again."""

    def body(m: Any, x: Tensor) -> Tensor:
        taken = m.a(x)[:, m.mask]
        return m.b(torch.cat([taken * torch.arange(1, taken.shape[1] + 1), taken.new_ones(len(x), 1)], 1))

    model = Written(body, a=nn.Linear(5, 8), b=linear(4))
    model.register_buffer("mask", torch.arange(8) % 3 == 0)
    model, x = model.double().eval(), torch.randn(3, 5).double()
    explainer = fastlrp.Explainer(model, "lrp0")
    for mask in (torch.arange(8) % 3 == 0, torch.arange(8) == 5, torch.arange(8) % 4 == 1):
        model.mask.copy_(mask)
        count = int(mask.sum())
        model.b = nn.Linear(count + 1, 4).double()
        found = explainer(x, "all", layers=["a"])["a"]
        expected = torch.zeros(3, 4, 8).double()
        expected[:, :, mask] = model.a(x)[:, None, mask] * torch.arange(1, count + 1) * model.b.weight[:, :count]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert explainer.verify(x, "all").ok
    model.b = nn.Linear(4, 4).double()
    model.mask.copy_(torch.arange(8) < 3)
    explainer(x, "all")
    model.b.weight.data.zero_()  # Other numbers, the same sizes.
    model.mask.copy_(torch.arange(8) > 4)
    assert not explainer(x, "all").any()


def test_sums_in_another_dtype_than_the_models() -> None:
    """A part in float32 of a model in float64, as gated delta rules compute themselves: registers keep its dtype."""

    def body(m: Any, x: Tensor) -> Tensor:
        h = m.a(x).float().view(-1, 2, 4)
        total = F.avg_pool1d(h @ h.transpose(1, 2) @ h, 2).sum(-1, keepdim=True)
        return m.b(((total @ total.transpose(1, 2)) @ h).flatten(1).double())

    model = Written(body, a=nn.Linear(5, 8), b=linear(8)).double().eval()
    report = fastlrp.Explainer(model, "attnlrp").verify(torch.randn(3, 5).double(), "all")
    assert report.ok, str(report)


def test_the_way_up_through_running_maxima() -> None:
    """PyTorch's derivative of ``logcumsumexp`` is not differentiable; targets by groups may go either way."""
    model = nn.Sequential(linear(3), Written(lambda m, h: h.logcumsumexp(-1)), linear(4)).double().eval()
    x = torch.randn(2, 3).double()
    explainer, groups = fastlrp.Explainer(model, "epsilon"), fastlrp.groups.features([[0, 2], [1]])
    down, up = (explainer(x, "all", groups=groups, direction=direction) for direction in ("down", "up"))
    torch.testing.assert_close(up, down, rtol=1e-12, atol=1e-12)
    with explainer.forward(x) as record:
        assert max(errors_of_steps(record).values()) < LARGEST
