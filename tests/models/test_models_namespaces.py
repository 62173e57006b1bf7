"""Operators of another namespace than ATen are unknown, whatever they are called."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastlrp
from fastlrp import UnsupportedOperationError, composites, register_rule, rules
from fastlrp.plan import assign
from tests.models.cases import Written

NAMESPACE = "fastlrp_tests"
NAMES = ("relu", "sigmoid", "softmax", "neg", "clone", "dropout", "abs", "contiguous", "empty_like", "mean", "linear",
         "reshape", "add", "my_dropout", "multiply", "copy", "zeros_like", "rand", "addcmul", "sym_size")  # fmt: skip
_LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")


def _shifted(x: Tensor) -> Tensor:
    """What each of these operators computes, which none of ATen's of the same name does: negative values too."""
    return 2 * x - 1


def _shifted_in_place(x: Tensor) -> Tensor:
    return x.mul_(2).sub_(1)


for _name in NAMES:
    _LIBRARY.define(f"{_name}(Tensor x) -> Tensor")
    _LIBRARY.impl(_name, _shifted, "CompositeExplicitAutograd")
_LIBRARY.define("relu_(Tensor(a!) x) -> Tensor(a!)")
_LIBRARY.impl("relu_", _shifted_in_place, "CompositeExplicitAutograd")


def of(name: str) -> Any:
    return getattr(getattr(torch.ops, NAMESPACE), name)


class Doubled(rules.Custom):
    """Twice what arrives: no rule of our own does that."""

    linear_in_relevance = True

    def propagate(self, forward: Any, inputs: Any, output: Tensor, relevance: Tensor) -> Any:
        return (2 * relevance,)


pytestmark = pytest.mark.usefixtures("own_registry")


def model_with(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    layers = {"a": nn.Linear(4, 5), "b": nn.Linear(5, 3)}
    model = Written(lambda m, x: m.b(of(name)(m.a(x))), **layers).double().eval()
    return model, torch.randn(2, 4).double()


@pytest.mark.each_value
@pytest.mark.parametrize("name", [*NAMES, "relu_"])
@pytest.mark.parametrize("composite", ["epsilon_plus", "zplus"])
def test_unknown(name: str, composite: str) -> None:
    model, x = model_with(name)
    with pytest.raises(UnsupportedOperationError, match=f"no rule for operation '{NAMESPACE}::{name.strip('_')}'") as e:
        fastlrp.explain(model, x, 0, composite)
    assert f"fastlrp.register_rule('{NAMESPACE}::{name.strip('_')}', rule)" in str(e.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_registered_rule_holds_for_the_namespace_alone(name: str) -> None:
    model, x = model_with(name)
    register_rule(f"{NAMESPACE}::{name}", Doubled())
    found = fastlrp.explain(model, x, [0, 2], "lrp0", layers=["a"])["a"]
    hidden = _shifted(model.a(x))
    torch.testing.assert_close(found, (2 * hidden[:, None] * model.b.weight[[0, 2]]).detach())
    plain = Written(lambda m, x: m.b(m.a(x).relu()), a=model.a, b=model.b).double().eval()
    found = fastlrp.explain(plain, x, [0, 2], "lrp0", layers=["a"])["a"]
    torch.testing.assert_close(found, (model.a(x).relu()[:, None] * model.b.weight[[0, 2]]).detach())


def test_a_name_without_a_namespace_is_atens() -> None:
    model, x = model_with("rand")
    register_rule("rand", Doubled())
    register_rule("other::rand", Doubled())
    with pytest.raises(UnsupportedOperationError, match="no rule for operation"):
        fastlrp.explain(model, x, 0, "lrp0")


@pytest.mark.parametrize("name", ["relu", "aten::relu", "aten::relu.default", "aten.relu.default"])
def test_what_fastlrp_knows_is_not_registered(name: str) -> None:
    with pytest.raises(ValueError, match="fastlrp knows 'relu'"):
        register_rule(name, Doubled())


def test_entries_of_a_composite() -> None:
    model, x = model_with("relu")
    whole = composites.lrp0()
    for names in ((f"{NAMESPACE}::relu",), ("aten::relu", f"{NAMESPACE}::relu.default")):
        found = fastlrp.explain(model, x, [1], whole.with_entries((composites.operation(*names), Doubled())))
        register_rule(f"{NAMESPACE}::relu", Doubled())
        torch.testing.assert_close(found, fastlrp.explain(model, x, [1], whole))
    assign._REGISTERED.clear()
    atens = whole.with_entries((composites.operation("relu", "aten::relu"), Doubled()))
    with pytest.raises(UnsupportedOperationError):
        fastlrp.explain(model, x, [1], atens)


def test_no_gate() -> None:
    """A product takes the output of ATen's sigmoid for a gate, and shares equally with anybody else's."""
    torch.manual_seed(0)
    layers = {"a": nn.Linear(4, 3), "g": nn.Linear(4, 3)}
    model = Written(lambda m, x: m.a(x) * of("sigmoid")(m.g(x)), **layers).double().eval()
    x = torch.randn(2, 4).double()
    register_rule(f"{NAMESPACE}::sigmoid", rules.Pass())
    found = fastlrp.explain(model, x, [1], "lrp0", layers=["a", "g"])
    half = 0.5 * model(x)[:, 1].detach()
    for name in ("a", "g"):
        torch.testing.assert_close(found[name][:, 0, 1], half)


def test_no_gradient_of_another() -> None:
    """The gradient of somebody's own "relu" is not ATen's."""
    torch.manual_seed(0)

    @torch.library.custom_op(f"{NAMESPACE}::tanh", mutates_args=())
    def cubed(x: Tensor) -> Tensor:
        return x**3

    cubed.register_fake(lambda x: torch.empty_like(x))
    cubed.register_autograd(
        lambda ctx, g: g * 3 * ctx.saved_tensors[0] ** 2,
        setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
    )
    model = Written(lambda m, x: m.b(cubed(m.a(x))), a=nn.Linear(4, 5), b=nn.Linear(5, 3)).double().eval()
    x = torch.randn(2, 4).double().requires_grad_()
    expected = torch.autograd.grad(model(x)[:, 1].sum(), x)[0]
    with pytest.raises(UnsupportedOperationError):
        fastlrp.explain(model, x.detach(), [1], "lrp0")
    found = fastlrp.explain(model, x.detach(), [1], "gradient", initial="one")
    torch.testing.assert_close(found[:, 0], expected)
