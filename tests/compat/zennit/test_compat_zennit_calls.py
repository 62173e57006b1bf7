"""What an attributor is asked, beyond what Zennit's can be: many targets, hidden layers, a differentiable model."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastlrp
from fastlrp.compat.zennit import Gradient, IntegratedGradients, SmoothGrad, context
from tests.compat.zennit.both import difference, ours, seeded, theirs

composites = pytest.importorskip("zennit.composites")
from zennit.canonizers import SequentialMergeBatchNorm  # noqa: E402

EYE = torch.eye(4, dtype=torch.float64)
TARGET = EYE[[1, 3]]


@pytest.fixture
def model() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return seeded(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(24, 4))


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def composite() -> Any:
    return composites.EpsilonPlus(canonizers=[SequentialMergeBatchNorm()])


def _loop(model: nn.Module, composite: Any, x: Tensor, starts: Any) -> Tensor:
    with theirs.Gradient(model, composite) as attributor:
        return torch.stack([attributor(x, start)[1] for start in starts])


def _close(got: Tensor, expected: Tensor) -> None:
    assert got.shape == expected.shape
    assert difference(got.flatten(0, 1), expected.flatten(0, 1)) <= 1e-12


@pytest.mark.parametrize("count", [1, 3, 40])
def test_many_initial_relevances_at_once(model: nn.Module, composite: Any, x: Tensor, count: int) -> None:
    starts = torch.randn(count, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(count))
    output, relevance = Gradient(model, composite)(x, starts)
    assert output.shape == (2, 4)
    _close(relevance, _loop(model, composite, x, starts))


def test_function_that_gives_many(model: nn.Module, composite: Any, x: Tensor) -> None:
    relevance = Gradient(model, composite, attr_output=lambda y: y * EYE.unsqueeze(1))(x)[1]
    _close(relevance, _loop(model, composite, x, [lambda y, c=c: y * EYE[[c, c]] for c in range(4)]))


@pytest.mark.parametrize("start", [None, torch.ones_like, "tensor", lambda y: y.softmax(1)])
def test_targets_take_the_initial_relevance_apart(model: nn.Module, composite: Any, x: Tensor, start: Any) -> None:
    """Each class starts with its own entry; together they are the call without targets."""
    start = torch.randn(2, 4, dtype=torch.float64) if start == "tensor" else start
    attributor = Gradient(model, composite)
    each = attributor(x, start, targets="all")[1]
    function = (lambda y: y) if start is None else (lambda y: start) if isinstance(start, Tensor) else start
    _close(each, _loop(model, composite, x, [lambda y, c=c: function(y) * EYE[[c, c]] for c in range(4)]))
    assert difference(each.sum(0), attributor(x, start)[1]) <= 1e-12


def test_targets_in_all_forms(model: nn.Module, composite: Any, x: Tensor) -> None:
    attributor = Gradient(model, composite, torch.ones_like)
    every = attributor(x, targets="all")[1]
    assert difference(attributor(x, targets=2)[1].flatten(1), every[2:3].flatten(1)) <= 1e-12
    assert attributor(x, targets=[3, 0])[1].shape == (2, 2, 3, 6, 6)
    own = attributor(x, targets=torch.tensor([[1], [3]]))[1]
    assert difference(own[0], torch.stack([every[1, 0], every[3, 1]])) <= 1e-12
    output, best = attributor(x, targets="top1")
    picked = torch.stack([every[c, i] for i, c in enumerate(output.argmax(1))])
    assert difference(best[0], picked) <= 1e-12


def test_layers(model: nn.Module, composite: Any, x: Tensor) -> None:
    """The gradients that Zennit's tensors between modules retain."""
    retained: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, input: Any, output: Tensor) -> None:
            output.retain_grad()
            retained[name] = output

        return hook

    with composite.context(model) as modified:
        handles = [modified[i].register_forward_hook(keep(str(i))) for i in (1, 2, 3)]
        point = x.clone().requires_grad_()
        modified(point).backward(TARGET)
        for handle in handles:
            handle.remove()
    _, found = Gradient(model, composite)(x, TARGET, layers=["1", "2", "3"])
    assert set(found) == {"1", "2", "3", "input", "output"}
    for name, output in retained.items():
        assert output.grad is not None
        assert difference(found[name], output.grad) <= 1e-12
    assert point.grad is not None
    assert difference(found["input"], point.grad) <= 1e-12
    _, many = Gradient(model, composite)(x, targets=[1, 2], layers="all")
    assert many["2"].shape == (2, 2, 6, 4, 4)


@pytest.mark.parametrize("attributor", [SmoothGrad, IntegratedGradients])
def test_averages_of_many_targets(attributor: Any, model: nn.Module, x: Tensor) -> None:
    composite = composites.EpsilonPlusFlat()
    their = getattr(theirs, attributor.__name__)
    expected = []
    for c in range(3):
        torch.manual_seed(9)
        expected.append(their(model, composite, n_iter=3)(x, EYE[[c, c]])[1])
    torch.manual_seed(9)
    output, found = attributor(model, composite, torch.ones_like, n_iter=3)(x, targets=[0, 1, 2])
    _close(found, torch.stack(expected))
    assert torch.equal(output, model(x))


def test_context_gives_a_differentiable_model(model: nn.Module, composite: Any, x: Tensor) -> None:
    results = []
    for make in (composite.context, lambda model: context(model, composite)):
        raw = x.clone().requires_grad_()
        normalised = (raw - 0.1) / 0.5
        with make(model) as modified:
            output = modified(normalised)
            output.backward(gradient=TARGET)
            first = raw.grad
            point = x.clone().requires_grad_()
            (second,) = torch.autograd.grad(modified(point), point, grad_outputs=TARGET)
        results.append((output.detach(), first, second))
    for got, expected in zip(results[1], results[0], strict=True):
        assert difference(got, expected) <= 1e-12


def test_context_is_of_first_order(model: nn.Module, composite: Any, x: Tensor) -> None:
    point = x.clone().requires_grad_()
    with (
        context(model, composite) as modified,
        pytest.raises(NotImplementedError, match=r"create_graph=True: .*"),
    ):
        torch.autograd.grad(modified(point), point, TARGET, create_graph=True)


def test_fastlrps_composites_follow_fastlrps_conventions(model: nn.Module, x: Tensor) -> None:
    """Batch norms merged without a canonizer, whoever made the attributor."""
    for composite in ("epsilon_plus", fastlrp.composites.epsilon_plus()):
        output, relevance = Gradient(model, composite)(x, TARGET)
        expected = fastlrp.explain(model, x, TARGET.unsqueeze(1), "epsilon_plus")[:, 0]
        assert torch.equal(output, model(x))
        assert difference(relevance, expected) <= 1e-12
    assert difference(expected, theirs.Gradient(model, composites.EpsilonPlus())(x, TARGET)[1]) > 0.01


def test_plan_shows_the_rules(model: nn.Module, composite: Any, x: Tensor) -> None:
    attributor = ours.Gradient(model, composite)
    with pytest.raises(RuntimeError, match="nothing is captured yet"):
        _ = attributor.plan
    attributor(x)
    text = str(attributor.plan)
    assert text.startswith("Zennit's EpsilonPlus:")
    assert "ZPlus(stabilizer=" in text


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool, torch.float32])
def test_initial_relevance_of_other_kinds_of_numbers(model: nn.Module, composite: Any, x: Tensor, dtype: Any) -> None:
    """As autograd takes them: ``F.one_hot`` gives integers."""
    start = TARGET.to(dtype)
    _close(Gradient(model, composite)(x, start)[1], theirs.Gradient(model, composite)(x, start)[1])


def test_output_with_more_axes() -> None:
    """A segmentation: the initial relevance has the output's shape, whatever that is."""
    model = seeded(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 1))
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    starts = torch.randn(3, 2, 4, 3, 3, dtype=torch.float64)
    composite = composites.EpsilonPlus()
    _close(Gradient(model, composite)(x, starts)[1], _loop(model, composite, x, starts))
    squeezed = seeded(nn.Linear(5, 1), nn.Flatten(0))
    x, start = torch.randn(3, 5, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    expected = theirs.Gradient(squeezed, composite)(x, start)[1]
    assert difference(Gradient(squeezed, composite)(x, start)[1], expected) <= 1e-12


@pytest.mark.slow
def test_benchmark_of_both(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks import shim_zennit

    file = tmp_path / "rows.jsonl"
    shim_zennit.main(["--models", "functional", "--composites", "epsilon_plus", "--targets", "1,3", "--size", "32",
                      "--repeats", "1", "--output", str(file)])  # fmt: skip
    printed = capsys.readouterr().out
    assert "functional, epsilon_plus: first call" in printed
    assert "| functional | epsilon_plus | 3 |" in printed
    assert "not timed" not in printed
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(row["provider"], row["targets"]) for row in rows] == [
        ("fastlrp shim", 1), ("zennit looped", 1), ("fastlrp shim", 3), ("zennit looped", 3),
    ]  # fmt: skip
    assert all(row["error"] < 1e-4 for row in rows if row["provider"] == "zennit looped")
