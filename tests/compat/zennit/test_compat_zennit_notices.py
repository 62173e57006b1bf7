"""What a captured model and hooks on copies cannot do: each is said, by an error or a warning."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.compat.zennit.both import agree, attribute, check, difference, ours, seeded, theirs

rules = pytest.importorskip("zennit.rules")
from zennit.composites import EpsilonPlus, LayerMapComposite  # noqa: E402
from zennit.core import BasicHook, Composite, Hook  # noqa: E402

from fastlrp import UnsupportedOperationError  # noqa: E402
from fastlrp.compat.zennit import context  # noqa: E402
from fastlrp.compat.zennit.notices import side_effects  # noqa: E402

TARGET = torch.eye(4, dtype=torch.float64)[[1, 3]]


@pytest.fixture(autouse=True)
def _seed() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        yield


def _network() -> nn.Sequential:
    return seeded(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4))


def _input() -> Tensor:
    return torch.randn(2, 5, dtype=torch.float64)


class Shared(nn.Module):
    """An activation that is called twice, or two activations."""

    def __init__(self, apart: bool) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(5, 40), nn.Linear(40, 40), nn.Linear(40, 4)
        self.act = nn.ReLU()
        self.other = nn.ReLU() if apart else self.act

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.other(self.second(self.act(self.first(x)))))


@pytest.mark.parametrize("hook", [rules.ReLUBetaSmooth(2.0), rules.Norm(0.1), BasicHook(), rules.Norm(lambda z: z + 3)])
def test_activation_called_twice_under_a_hook_that_reads_its_input(hook: Any) -> None:
    apart, shared, x = seeded(Shared(True)), seeded(Shared(False)), _input()
    apart.load_state_dict(shared.state_dict())
    composite = LayerMapComposite([(nn.Linear, rules.ZPlus()), (nn.ReLU, hook)])
    with pytest.warns(UserWarning, match=r"module '0\.act' is called 2 times under .*: each call is explained with"):
        found = attribute(ours, shared, composite, x, TARGET)
    check(found, attribute(theirs, apart, composite, x, TARGET))
    assert difference(found[1], attribute(theirs, shared, composite, x, TARGET)[1]) > 0.01


@pytest.mark.parametrize("hook", [rules.Pass(), rules.ReLUDeconvNet(), rules.ReLUGuidedBackprop()])
def test_activation_called_twice_under_other_hooks_is_zennits(hook: Any) -> None:
    composite = LayerMapComposite([(nn.Linear, rules.ZPlus()), (nn.ReLU, hook)])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        agree(seeded(Shared(False)), composite, _input(), TARGET)


def _on_linear(hook: Any) -> Any:
    return LayerMapComposite([(nn.Linear, hook)])


class Before(Hook):
    def pre_forward(self, module: Any, *arguments: Any) -> Any:
        return (2 * arguments[0][0],)


class After(BasicHook):
    def post_forward(self, module: Any, *arguments: Any) -> Any:
        return 2 * arguments[-1]


class Arriving(rules.Epsilon):  # type: ignore[misc]
    def pre_backward(self, module: Any, grad_input: Any, grad_output: Any) -> None:
        self.stored_tensors["grad_output"] = tuple(2 * part for part in grad_output)


@pytest.mark.parametrize("hook", [Before, After, Arriving])
def test_hooks_with_steps_that_have_no_place_are_refused(hook: Any) -> None:
    name = next(name for name in ("pre_forward", "post_forward", "pre_backward") if name in vars(hook))
    message = f"the hook {hook.__name__} on '[02]' has {name} of its own"
    with pytest.raises(UnsupportedOperationError, match=message):
        ours.Gradient(_network(), _on_linear(hook()))(_input())


def test_hook_that_replaces_the_output_is_refused() -> None:
    class Twice(Hook):
        def forward(self, module: Any, input: Any, output: Any) -> Any:
            return 2 * output

    with pytest.raises(UnsupportedOperationError, match="forward of the hook Twice returns Tensor: under Zennit"):
        ours.Gradient(_network(), _on_linear(Twice()))(_input())


class Halves(Hook):
    """Reads what both versions of Zennit hand over, and what it has kept."""

    def forward(self, module: Any, input: Any, output: Any) -> None:
        self.stored_tensors["input"] = input

    def backward(self, module: Any, grad_input: Any, grad_output: Any) -> Any:
        return (0.5 * grad_input[0] + 0 * self.stored_tensors["input"][0],)


class Whole(rules.Epsilon):  # type: ignore[misc]
    """Adds to what the rule does."""

    def backward(self, module: Any, grad_input: Any, grad_output: Any) -> Any:
        return tuple(3 * part for part in super().backward(module, grad_input, grad_output))


@pytest.mark.parametrize("hook", [Halves, Whole])
def test_hooks_of_ones_own(hook: Any) -> None:
    agree(_network(), _on_linear(hook()), _input(), TARGET)


def test_hook_that_keeps_something_from_call_to_call() -> None:
    class Counts(Hook):
        calls = 0

        def backward(self, module: Any, grad_input: Any, grad_output: Any) -> Any:
            self.calls += 1
            return (self.calls * grad_input[0],)

    attributor = ours.Gradient(_network(), LayerMapComposite([(nn.ReLU, Counts())]))
    with pytest.warns(UserWarning, match="Counts on '1' changes its attribute 'calls': here every call and every tar"):
        attributor(_input(), TARGET)


@pytest.mark.parametrize("how", ["attribute", "closure"])
def test_hook_that_goes_by_identity(how: str) -> None:
    model = _network()

    class Special(Hook):
        def __init__(self, special: Any = None) -> None:
            super().__init__()
            self.special = special

        def copy(self) -> Any:
            return Special(self.special)

        def backward(self, module: Any, grad_input: Any, grad_output: Any) -> Any:
            return (2 * grad_input[0],) if module is self.special else None

    class Closed(Hook):
        def backward(self, module: Any, grad_input: Any, grad_output: Any) -> Any:
            return (2 * grad_input[0],) if module is model[2] else None

    hook = Special(model[2]) if how == "attribute" else Closed()
    path = "2" if how == "attribute" else ""
    message = re.escape(f"refers to the module {path!r} of the model. A hook runs with a copy")
    with pytest.warns(UserWarning, match=message):
        ours.Gradient(model, _on_linear(hook))(_input())


def test_map_that_goes_by_identity() -> None:
    model = _network()
    for special in (model[0], model[2]):
        chosen = {id(special): rules.Epsilon(1.0)}
        agree(model, Composite(lambda context, name, module, c=chosen: c.get(id(module))), _input(), TARGET)


class Noisy(nn.Module):
    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.layer, self.calls = what, nn.Linear(5, 4), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.shape = x.shape
        if self.what == "print":
            print("called")
        return self.layer(x)


def test_side_effects_of_forward_are_told() -> None:
    effects = r"sets the attribute 'calls' and sets the attribute 'shape' and prints"
    for composite in (EpsilonPlus(), None, "epsilon"):
        model = seeded(Noisy("count"))
        with pytest.warns(UserWarning, match=rf"forward of module '0' \(Noisy\) {effects}. The model is captured once"):
            attribute(ours, model, composite, _input(), TARGET)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            attribute(ours, model, composite, _input(), TARGET)
        assert model[0].calls == 0


class Keeps(nn.Module):
    def beside_a_variable(self, x: Tensor) -> Tensor:
        y = self.last = x + 1
        return y

    def in_a_tuple(self, x: Tensor) -> Tensor:
        y, self.last = x + 1, x
        return y

    def read_by_a_function_inside(self, x: Tensor) -> Tensor:
        self.last = x
        return (lambda: self.last + 1)()

    def none_of_its_own(self, x: Tensor) -> Tensor:
        y = x + 1
        y.last = x
        return y


@pytest.mark.parametrize("name", ["beside_a_variable", "in_a_tuple", "read_by_a_function_inside", "none_of_its_own"])
def test_attributes_that_forward_sets_in_any_statement(name: str) -> None:
    """Each version of Python has instructions of its own for these."""
    Keeps.forward = getattr(Keeps, name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        side_effects(Keeps())
    assert any("sets the attribute 'last'" in str(w.message) for w in caught) == (name != "none_of_its_own")


def test_context_says_that_parameters_get_no_gradients() -> None:
    model, x = _network(), _input().requires_grad_()
    with context(model, EpsilonPlus()) as modified:
        with pytest.warns(UserWarning, match="the parameters get no gradients, their .grad stays as it was"):
            modified(x).backward(TARGET)
        assert all(p.grad is None for p in model.parameters())
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            (found,) = torch.autograd.grad(modified(x), x, TARGET)
            model.requires_grad_(False)
            x.grad = None
            modified(x).backward(TARGET)
        assert torch.equal(found, x.grad)
        model.requires_grad_(True)
        with (
            pytest.warns(UserWarning, match="get no gradients"),
            pytest.raises(RuntimeError, match="not have been used"),
        ):
            torch.autograd.grad(modified(x), model[0].weight, TARGET)


def test_context_hands_out_the_models_modules_and_parameters() -> None:
    model = _network()
    with context(model, EpsilonPlus()) as modified:
        assert [id(p) for p in modified.parameters()] == [id(p) for p in model.parameters()]
        assert dict(modified.named_modules()) == dict(model.named_modules())
        assert list(modified.state_dict()) == list(model.state_dict())
        assert list(modified.children()) == list(model.children())
        assert modified.eval() is modified
        assert not modified.training
        assert modified.append
        with pytest.raises(AttributeError, match="nothing"):
            _ = modified.nothing
