"""A sample's relevance does not depend on the rest of the batch: what lets it is an error that names the operation."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastlrp
from fastlrp import CaptureError, Stabilizer, UnsupportedOperationError, composites, register_rule, rules
from fastlrp.capture import export as capture
from fastlrp.capture.lift import probe
from fastlrp.capture.lift.standing import Standing
from tests.models.cases import Written, linear
from tests.models.oracle import relative_error
from tests.models.own_rules import Proportional
from tests.models.random_graphs import RandomModel, random_model

ACCEPTED = 1e-7
pytestmark = pytest.mark.usefixtures("own_registry")


def check_samples(model: nn.Module, x: Tensor, composite: Any) -> bool:
    """Whether the model was taken; if it was, samples alone, permuted samples and ``verify`` must agree."""
    explainer = fastlrp.Explainer(model, composite)
    message = ""
    try:
        together = explainer(x, [0, 2])
    except UnsupportedOperationError as error:
        message = str(error)
    if message:
        assert re.search(r"in module '|^\w+ \(\w*\)|no relevance reaches", message), message
        return False
    if not bool(together.isfinite().all()) or not bool((together != 0).any()):
        return True
    alone = torch.cat([explainer(x[i : i + 1], [0, 2]) for i in range(len(x))])
    assert relative_error(alone, together) <= ACCEPTED
    order = torch.tensor([2, 0, 1])
    assert relative_error(explainer(x[order], [0, 2]), together[order]) <= ACCEPTED
    report = explainer.verify(x, [0, 2])
    assert report.ok, str(report)
    return True


def random_composite(seed: int) -> Any:
    unknown = (composites.kind("unknown"), Proportional())
    return ("gradient", composites.resolve("epsilon_plus").with_entries(unknown), "epsilon_plus")[seed % 3]


@pytest.mark.parametrize("seed", range(40))
def test_random_models(seed: int) -> None:
    model, x = random_model(seed)
    check_samples(model, x, random_composite(seed))


def _verdict(model: RandomModel, x: Tensor) -> bool | str:
    try:
        captured = capture.capture(model, (x,), {}, None)
    except CaptureError as error:
        return re.split(r"in module|\(", str(error))[0]
    return captured.fixed_batch is None


@pytest.mark.parametrize("seed", range(12))
def test_what_the_arguments_prove_holds_when_tried(seed: int) -> None:
    model, x = random_model(1000 + seed)
    usual = _verdict(model, x)
    untold = mock.patch.object(probe, "keeps_samples_apart", return_value=False)
    with untold, mock.patch.object(Standing, "follow", return_value=False):
        assert _verdict(model, x) == usual


def _gate(h: Tensor) -> Tensor:
    return h * h.mean(0).sigmoid()


def _one_of(h: Tensor) -> Tensor:
    return h * F.one_hot(h.argmax(0), h.shape[0]).to(h.dtype).t()


MIXES: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "softmax": ("softmax .*works along axis 0", lambda h: h.softmax(0)),
    "log_softmax": ("log_softmax .*works along axis 0", lambda h: h.log_softmax(0)),
    "softmin": ("softmax .*works along axis 0", lambda h: F.softmin(h, 0)),
    "cumsum": ("cumsum .*works along axis 0", lambda h: h.cumsum(0)),
    "logcumsumexp": ("logcumsumexp .*works along axis 0", lambda h: h.logcumsumexp(0)),
    "roll": ("roll .*works along axis 0", lambda h: h.roll(1, 0)),
    "roll_flattened": ("roll .*works along axis 0", lambda h: h.roll(1)),
    "flip": ("flip .*works along axis 0", lambda h: h.flip(0)),
    "flip_both": ("flip .*works along axis 0", lambda h: h.flip(1, -2)),
    "sort": ("sort .*works along axis 0", lambda h: h.sort(0)[0]),
    "scatter": ("argsort .*works along axis 0", lambda h: torch.zeros_like(h).scatter(0, h.argsort(0), h)),
    "gather": ("gather .*works along axis 0", lambda h: h.gather(0, torch.zeros_like(h, dtype=torch.long))),
    "index": ("index .*since it reads flip", lambda h: h[torch.arange(h.shape[0]).flip(0)]),
    "index_select": ("index_select .*axis 0", lambda h: h.index_select(0, torch.arange(h.shape[0]).flip(0))),
    "norm": ("linalg_vector_norm .*works along axis 0.*div", lambda h: h / h.norm()),
    "normalize": ("linalg_vector_norm .*works along axis 0", lambda h: F.normalize(h, dim=0)),
    "mean": ("mean .*works along axis 0.*sub", lambda h: h - h.mean(0)),
    "mean_kept": ("mean .*works along axis 0.*sub", lambda h: h - h.mean(0, keepdim=True)),
    "largest": ("max .*works along axis 0.*div", lambda h: h / h.max()),
    "gate": ("mean .*works along axis 0.*mul", _gate),
    "mask": ("median .*works along axis 0.*gt", lambda h: h * (h > h.median(0)[0]).to(h.dtype)),
    "one_hot": ("argmax .*works along axis 0", _one_of),
    "count": ("div .*since it reads sym_size", lambda h: h / h.shape[0]),
    "position": ("add .*since it reads", lambda h: h + torch.arange(h.shape[0]).unsqueeze(1)),
    "products": ("matmul .*mixes samples", lambda h: (h @ h.t()) @ h),
    "einsum": ("einsum .*mixes samples", lambda h: torch.einsum("bi,ci->bc", h, h) @ h),
    "distances": ("cdist .*mixes samples", lambda h: torch.cdist(h, h) @ h),
    "triangle": ("tril .*mixes samples", lambda h: h.tril()),
    "reshape": ("reshape .*mixes samples", lambda h: h.t().reshape(h.shape[0], 8)),
    "folded": ("slice .*lie one after the other", lambda h: h.view(-1, 4)[: h.shape[0]].repeat(1, 2)),
    "repeat": ("repeat .*mixes samples", lambda h: h.repeat(2, 1)[::2]),
    "repeat_interleave": ("repeat_interleave .*axis 0", lambda h: h.repeat_interleave(2, 0)[: h.shape[0]]),
    "expand": ("slice .*axis 0.*expand", lambda h: h[0:1].expand(h.shape[0], 8)),
    "pad": ("pad .*mixes samples", lambda h: F.pad(h, (0, 0, 1, 0))[:-1]),
    "layer_norm": ("layer_norm .*since it reads", lambda h: F.layer_norm(h.t(), (h.shape[0],)).t()),
    "pool": ("avg_pool1d .*mixes samples", lambda h: F.avg_pool1d(h.t().unsqueeze(0), 3, 1, 1)[0].t()),
    "elsewhere": ("softmax .*works along axis 1", lambda h: h.unsqueeze(0).softmax(1).squeeze(0)),
    "pairs": ("sub .*mixes samples", lambda h: (h.unsqueeze(0) - h.unsqueeze(1)).sum(1)),
}


def _between(body: Callable[[Tensor], Tensor]) -> nn.Module:
    return Written(lambda m, x: m.b(body(m.a(x))), a=nn.Linear(10, 8), b=linear(8)).double().eval()


def _sample(count: int = 3) -> Tensor:
    return torch.randn(count, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("name", "count"), [*((name, 3) for name in MIXES), ("softmax", 1), ("mean", 1), ("index", 1)])
def test_along_the_batch(name: str, count: int) -> None:
    message, body = MIXES[name]
    with pytest.raises(UnsupportedOperationError, match=message) as error:
        fastlrp.Explainer(_between(body), "gradient", example_inputs=_sample(count))
    assert "in module '(the model itself)'" in str(error.value)
    assert "Keep the batch as axis 0" in str(error.value)


def test_the_path_of_the_module_is_named() -> None:
    model = nn.Sequential(nn.Conv1d(3, 4, 3), nn.Sequential(nn.ReLU(), nn.Softmax()), nn.Flatten(), nn.LazyLinear(2))
    with pytest.warns(UserWarning, match="Implicit dimension"):
        model(torch.randn(2, 3, 8))
    with pytest.raises(UnsupportedOperationError, match=r"softmax in module '1\.1' works along axis 0, the batch"):
        fastlrp.explain(model.eval(), torch.randn(2, 3, 8), [0])


KEEPS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda h: h.softmax(1),
    "norm": lambda h: h / h.norm(dim=1, keepdim=True),
    "rows_of_all": lambda h: h[torch.arange(h.shape[0]), 2:6].repeat(1, 2),
    "zeros": lambda h: h + torch.zeros(h.shape[0], 8),
    "flip": lambda h: h.flip(-1).roll(2, 1),
    "gate_elsewhere": lambda h: h * h.t().mean(0).sigmoid().unsqueeze(1),
    "own_mean": lambda h: h - h.mean(-1, keepdim=True),
}


@pytest.mark.parametrize("name", list(KEEPS))
def test_what_keeps_samples_apart_is_taken(name: str) -> None:
    assert check_samples(_between(KEEPS[name]), _sample(), "epsilon_plus")


class Fixed(nn.Module):
    """Holds on to one batch size."""

    def __init__(self, count: int, body: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.count, self.body, self.last = count, body, nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Any:
        h = self.body(x.view(self.count, 8))
        return self.last(h)


@pytest.mark.parametrize("body", [lambda h: h.roll(1, 0), lambda h: h - h.mean(0), lambda h: h.t(), lambda h: h @ h])
def test_models_that_hold_on_to_a_batch_size(body: Callable[[Tensor], Tensor]) -> None:
    # As many samples as features: the shapes show nothing.
    x = torch.randn(8, 2, 4, dtype=torch.float64)
    with pytest.raises(UnsupportedOperationError, match="batch"):
        fastlrp.explain(Fixed(8, body).double().eval(), x, [0], "gradient")
    model = Fixed(8, lambda h: h.relu()).double().eval()
    explainer = fastlrp.Explainer(model)
    assert explainer(x, [0]).shape == (8, 1, 2, 4)
    report = explainer.verify(x, [0])
    assert report.ok
    assert report.alone is None


def test_operations_of_ones_own_are_tried() -> None:
    register_rule("renorm", rules.Gradient())  # Not quantile, which torch.export of PyTorch 2.11 cannot trace.
    with pytest.raises(UnsupportedOperationError, match=r"renorm .* mixes samples along the batch"):
        fastlrp.explain(_between(lambda h: h - h.renorm(2, 1, 0.5)), _sample(), [0])
    assert check_samples(_between(lambda h: h - h.renorm(2, 0, 0.5)), _sample(), "epsilon_plus")


def test_integers_are_those_of_the_example() -> None:
    """An index out of range would fail: integers are not made up."""
    table = nn.Embedding(7, 8)
    model = Written(lambda m, x, i: m.b(m.a(x) * m.e(i)), a=nn.Linear(10, 8), e=table, b=linear(8)).double().eval()
    x, i = _sample(), torch.tensor([6, 0, 3])
    explainer = fastlrp.Explainer(model, "epsilon_plus")
    together = explainer({"x": x, "i": i}, [0])["x"]
    alone = explainer({"x": x[1:2], "i": i[1:2]}, [0])["x"]
    assert relative_error(alone, together[1:2]) <= ACCEPTED
    mixed = Written(lambda m, x, i: m.b(m.a(x) * m.e(i.flip(0))), a=nn.Linear(10, 8), e=table, b=linear(8))
    with pytest.raises(UnsupportedOperationError, match=r"flip .* works along axis 0"):
        fastlrp.explain(mixed.double().eval(), {"x": x, "i": i}, [0])


def test_random_numbers_of_the_caller_stay() -> None:
    model = _between(lambda h: h.logcumsumexp(1))
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    fastlrp.Explainer(model, "gradient", example_inputs=_sample())
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes(dtype: torch.dtype) -> None:
    x = _sample().to(dtype)
    for body, taken in ((lambda h: h.logcumsumexp(1), True), (lambda h: h.logcumsumexp(0), False)):
        model = _between(body).to(dtype)
        if taken:
            fastlrp.Explainer(model, "gradient", example_inputs=x)
        else:
            with pytest.raises(UnsupportedOperationError, match="axis 0"):
                fastlrp.Explainer(model, "gradient", example_inputs=x)


@pytest.mark.parametrize("name", ["roll", "cumsum", "softmax", "flip"])
def test_verify_notices_samples_that_depend_on_others(name: str) -> None:
    with mock.patch.object(capture, "refuse_mixed_samples"):
        explainer = fastlrp.Explainer(_between(MIXES[name][1]), "epsilon_plus", example_inputs=_sample())
    report = explainer.verify(_sample(), [0, 1])
    assert not report.ok, str(report)
    assert report.alone is not None
    assert report.alone > 0.01
    assert ", a sample alone " in str(report)
    assert explainer.verify(_sample(1), [0, 1]).alone is None


@pytest.mark.parametrize("norm", ["tensor", "sample"])
def test_verify_of_rules_that_read_the_whole_batch_by_definition(norm: Any) -> None:
    """Alone a sample has another root mean square: that is the rule, not a mistake of its computation."""
    model = _between(lambda h: h.relu())
    report = fastlrp.Explainer(model, composites.epsilon(Stabilizer(0.25, relative=norm))).verify(_sample(), [0, 1])
    assert report.ok, str(report)
    assert (report.alone is None) == (norm == "tensor")


def test_verify_of_a_rule_of_ones_own_with_several_inputs_and_other_arguments() -> None:
    register_rule("diff", Proportional())
    model = _between(lambda h: h.diff(dim=1, prepend=h[:, :1]))
    assert check_samples(model, _sample(), "lrp0")
    plan = fastlrp.Explainer(model, "lrp0", example_inputs=_sample()).plan
    assert "diff" in [node.operation for node in plan.graph.nodes]  # Without the rule it is written out.
