"""What stays as it was, what is kept from call to call, what is noticed."""

from __future__ import annotations

import copy
import gc
import subprocess
import sys
import threading
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastlrp.run.plans
from fastlrp import composites
from fastlrp.compat.zennit import explainer as hooked
from fastlrp.compat.zennit import prepare
from tests.compat.zennit.both import agree, attribute, check, difference, ours, same, seeded, state, theirs
from tests.torchvision_models import random_model

rules = pytest.importorskip("zennit.rules")
from zennit.canonizers import SequentialMergeBatchNorm  # noqa: E402
from zennit.composites import EpsilonGammaBox, EpsilonPlus, EpsilonPlusFlat, LayerMapComposite  # noqa: E402
from zennit.core import BasicHook, Composite  # noqa: E402
from zennit.torchvision import ResNetCanonizer  # noqa: E402

TARGET = torch.eye(4, dtype=torch.float64)[[1, 3]]


@pytest.fixture(autouse=True)
def _seed() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        yield


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with each capture of a model."""
    found: list[int] = []
    real = fastlrp.run.plans.capture

    def counted(*arguments: Any) -> Any:
        found.append(1)
        return real(*arguments)

    monkeypatch.setattr(fastlrp.run.plans, "capture", counted)
    return found


def _network() -> nn.Sequential:
    return seeded(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4))


def _input() -> Tensor:
    return torch.randn(2, 3, 6, 6, dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("composite", ["zennit", "fastlrp", "none"])
def test_model_stays_as_it_was(composite: str) -> None:
    model = random_model("resnet18", classes=4)
    model.layer1[0].requires_grad_(False)
    chosen = {"zennit": EpsilonPlus(canonizers=[ResNetCanonizer()]), "fastlrp": "epsilon_plus", "none": None}[composite]
    before = state(model)
    x = torch.randn(1, 3, 32, 32)
    with ours.Gradient(model, chosen) as attributor:
        same(before, state(model))
        attributor(x)
    attributor(x, targets="all")
    same(before, state(model))
    assert x.grad is None
    assert not x.requires_grad
    assert all(p.grad is None for p in model.parameters())


def test_input_and_result_have_no_graph() -> None:
    model, x = _network(), _input().requires_grad_()
    output, relevance = ours.Gradient(model, EpsilonPlus())(x, TARGET)
    assert not output.requires_grad
    assert not relevance.requires_grad
    assert x.grad is None
    with torch.no_grad():
        again = ours.Gradient(model, EpsilonPlus())(x, TARGET)[1]
    with torch.inference_mode():
        third = ours.Gradient(model, EpsilonPlus())(x, TARGET)[1]
    assert torch.equal(relevance, again)
    assert torch.equal(relevance, third)


def test_a_function_of_the_output_cannot_change_it() -> None:
    def overwrites(output: Tensor) -> Tensor:
        return output.zero_().add_(1)

    model, x = _network(), _input()
    output, _ = ours.Gradient(model, EpsilonPlus())(x, overwrites)
    assert torch.equal(output, model(x))


def test_one_capture_for_any_number_of_attributors(captures: list[int]) -> None:
    """Also of scripts that make composite, canonizers and attributor anew for every image."""
    model, x = _network(), _input()
    for batch in (x, x[:1], torch.cat([x, x])):
        high = torch.full((1, 3, 1, 1), 4.0)
        composite = EpsilonGammaBox(low=-high, high=high, canonizers=[SequentialMergeBatchNorm()])
        with ours.Gradient(model, composite) as attributor:
            attributor(batch)
            attributor(batch)
        attributor(batch)
    assert len(captures) == 1
    ours.Gradient(model, EpsilonGammaBox(low=-high, high=2 * high, canonizers=[SequentialMergeBatchNorm()]))(x)
    assert len(captures) == 2
    ours.Gradient(model, EpsilonGammaBox(low=-high, high=high))(x)
    assert len(captures) == 3
    for _ in range(2):
        ours.Gradient(model, composites.epsilon_gamma_box(-4.0, 4.0))(x)
        ours.Gradient(model)(x)
    assert len(captures) == 5


def test_hooks_of_ones_own_are_told_apart_by_what_they_do(captures: list[int]) -> None:
    def made(factor: float) -> Any:
        hook = BasicHook(reducer=lambda inputs, gradients: factor * inputs[0] * gradients[0])
        return LayerMapComposite([(nn.Linear, hook)])

    model, x = _network(), _input()
    single, same = (ours.Gradient(model, made(1.0))(x)[1] for _ in range(2))
    twice = ours.Gradient(model, made(2.0))(x)[1]
    assert torch.equal(single, same)
    assert torch.allclose(twice, 2 * single)
    assert len(captures) == 2


def test_module_map_that_makes_a_hook_at_every_call(captures: list[int]) -> None:
    def module_map(context: Any, name: str, module: nn.Module) -> Any:
        return rules.Epsilon(0.01) if isinstance(module, nn.Linear) else None

    model, x = _network(), _input()
    for _ in range(2):
        ours.Gradient(model, Composite(module_map))(x)
    assert len(captures) == 1


def test_composite_that_was_changed(captures: list[int]) -> None:
    model, x = _network(), _input()
    composite = EpsilonPlus()
    attributor = ours.Gradient(model, composite)
    attributor(x)
    composite.layer_map.insert(0, (nn.Linear, rules.Epsilon(1.0)))
    assert difference(attributor(x, TARGET)[1], theirs.Gradient(model, composite)(x, TARGET)[1]) <= 1e-12
    assert len(captures) == 2


@pytest.mark.each_value
@pytest.mark.parametrize("canonized", [True, False])
@pytest.mark.parametrize("how", ["in_place", "loaded", "replaced", "statistics", "structure", "data"])
@pytest.mark.parametrize("entered", [True, False])
def test_changed_weights_are_noticed(canonized: bool, how: str, entered: bool) -> None:
    model, x = _network(), _input()
    composite = EpsilonPlus(canonizers=[SequentialMergeBatchNorm()] if canonized else [])
    attributor = ours.Gradient(model, composite)
    if entered:
        attributor.__enter__()
    before = attributor(x, TARGET)[1]
    with torch.no_grad():
        if how == "in_place":
            model[4].weight.mul_(-2)
        elif how == "loaded":
            model.load_state_dict(_network().state_dict())
        elif how == "replaced":
            model[0].weight = nn.Parameter(torch.randn_like(model[0].weight))
        elif how == "statistics":
            model[1].running_var.mul_(3)
        elif how == "structure":
            model[2] = nn.Tanh()
        else:
            model[0].weight.data = torch.randn_like(model[0].weight)
    expected = theirs.Gradient(model, composite)(x, TARGET)[1]
    assert difference(attributor(x, TARGET)[1], expected) <= 1e-12
    assert difference(before, expected) > 1e-3


@pytest.mark.parametrize("canonized", [True, False])
@pytest.mark.parametrize("entered", [True, False])
def test_weights_written_without_a_trace_are_noticed(canonized: bool, entered: bool) -> None:
    model, x = _network(), _input()
    composite = EpsilonPlus(canonizers=[SequentialMergeBatchNorm()] if canonized else [])
    attributor = ours.Gradient(model, composite)
    if entered:
        attributor.__enter__()
    before = attributor(x, TARGET)[1]
    model[4].weight.data.mul_(-2)
    expected = theirs.Gradient(model, composite)(x, TARGET)[1]
    assert difference(before, expected) > 1e-3
    assert difference(attributor(x, TARGET)[1], expected) <= 1e-12
    attributor.refresh()
    assert difference(attributor(x, TARGET)[1], expected) <= 1e-12


def test_training_of_a_model_without_canonizers_captures_once(captures: list[int]) -> None:
    model = seeded(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4))
    x = torch.randn(2, 5, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
        # Zennit 1.0.0 leaves other parameters in the model that it explains.
        expected = attribute(theirs, copy.deepcopy(model), EpsilonPlus(), x, TARGET)
        check(attribute(ours, model, EpsilonPlus(), x, TARGET), expected)
    assert len(captures) == 1


def test_other_precision() -> None:
    model, x = _network(), _input()
    attributor = ours.Gradient(model, EpsilonPlus(canonizers=[SequentialMergeBatchNorm()]))
    double = attributor(x, TARGET)[1]
    model.float()
    single = attributor(x.float(), TARGET.float())[1]
    assert single.dtype == torch.float32
    assert difference(single.double(), double) < 1e-4


@pytest.mark.slow
def test_models_are_not_kept_alive() -> None:
    model, x = _network(), _input()
    ours.Gradient(model, EpsilonPlus(canonizers=[SequentialMergeBatchNorm()]))(x)
    ours.Gradient(model, EpsilonPlus())(x)
    ours.Gradient(model, "epsilon_plus")(x)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


@pytest.mark.slow
def test_at_most_a_few_explainers_are_kept_per_model() -> None:
    model, x = _network(), _input()
    for number in range(8):
        ours.Gradient(model, EpsilonPlus(epsilon=0.01 * (number + 1)))(x)
    assert len(prepare._PREPARED[model]) == prepare._KEPT


def test_threads_share_an_explainer(captures: list[int]) -> None:
    model, x = _network(), _input()
    composite = EpsilonPlusFlat(canonizers=[SequentialMergeBatchNorm()])
    expected = theirs.Gradient(model, composite)(x, TARGET)[1]
    found: list[Tensor] = []

    def work() -> None:
        for _ in range(3):
            found.append(ours.Gradient(model, composite)(x, TARGET)[1])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 12
    assert max(difference(one, expected) for one in found) <= 1e-12
    assert len(captures) == 1


def test_a_copy_of_the_model_is_another_model() -> None:
    model, x = _network(), _input()
    ours.Gradient(model, EpsilonPlus())(x)
    agree(copy.deepcopy(model), EpsilonPlus(), x, TARGET)


def test_explainer_takes_the_passes_of_its_own() -> None:
    """The plan under Zennit's hooks keeps batch norms apart, which the explainer's own passes would merge."""
    model, x = _network(), _input()
    attributor = ours.Gradient(model, EpsilonPlus())
    attributor(x)
    assert any(node.kind == "batch_norm" for node in attributor.plan.graph.nodes)
    assert isinstance(prepare.prepare(model, EpsilonPlus()).explainer, hooked.HookExplainer)


WITHOUT = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("zennit", "torchvision"):
            raise ImportError(f"{name} is not installed")

sys.meta_path.insert(0, Blocked())
import torch
from torch import nn
import fastlrp
from fastlrp.compat.zennit import Gradient, IntegratedGradients, SmoothGrad, context

model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4)).eval()
x, target = torch.randn(2, 3, 6, 6), torch.eye(4)[[1, 3]]
for composite in (None, "epsilon_plus", fastlrp.composites.epsilon_gamma_box(-4.0, 4.0)):
    with Gradient(model, composite) as attributor:
        output, relevance = attributor(x, target)
    name = "gradient" if composite is None else composite
    expected = fastlrp.explain(model, x, target.unsqueeze(1), name)[:, 0]
    assert torch.equal(relevance, expected) and torch.equal(output, model(x))
SmoothGrad(model, n_iter=2)(x, target)
IntegratedGradients(model, "epsilon_plus", n_iter=2)(x, target)
assert not any(name.startswith(("zennit", "torchvision")) for name in sys.modules)
print("done")
"""


@pytest.mark.slow
def test_without_zennit_fastlrps_composites_work() -> None:
    run = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True)
    assert run.stdout == "done\n", run.stderr
