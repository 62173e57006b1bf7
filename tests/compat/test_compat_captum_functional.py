"""Functional code between modules, and activation modules in a row, against Captum."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastlrp
from tests.compat.captum_scripts import Library, agree, images, mixed, prepared, replacement

Function = Callable[[Tensor], Tensor]


class Between(nn.Module):
    """A convolution, activation modules, functional code, and a linear layer."""

    def __init__(self, activations: Sequence[nn.Module], function: Function, read_between: bool = False) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.row: Any = nn.Sequential(*activations) if activations else ()  # An empty one is a layer to Captum.
        self.last = nn.Linear(6, 4)
        self.function, self.read_between = function, read_between

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        if self.read_between:
            h = self.row[0](h)
            return self.last(self.function(self.row[1:](h) + 0.5 * h))
        for activation in self.row:
            h = activation(h)
        return self.last(self.function(h))


def _mean(h: Tensor) -> Tensor:
    return h.mean((2, 3))


ROWS: dict[str, Callable[[], list[nn.Module]]] = {
    "relu 2": lambda: [nn.ReLU(), nn.ReLU()],
    "relu 3": lambda: [nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU()],
    "tanh 4": lambda: [nn.Tanh() for _ in range(4)],
    "relu tanh": lambda: [nn.ReLU(), nn.Tanh()],
    "tanh dropout tanh": lambda: [nn.Tanh(), nn.Dropout(), nn.Tanh()],
    "dropout tanh": lambda: [nn.Dropout(), nn.Tanh()],
    "tanh dropout dropout tanh": lambda: [nn.Tanh(), nn.Dropout(), nn.Dropout(), nn.Tanh()],
    "one tanh thrice": lambda: [nn.Tanh()] * 3,
}


@pytest.mark.parametrize("function", [_mean, lambda h: h.flatten(2).sum(2), lambda h: h.amax((2, 3))])
@pytest.mark.parametrize("row", ROWS)
def test_activations_in_a_row(row: str, function: Function) -> None:
    """Captum's hook of one sees the derivative of the next: every other one is a plain gradient."""

    def script(lib: Library) -> Any:
        model, x = prepared(Between(ROWS[row](), function)), images(size=5)
        found = [lib.LRP(model).attribute(x, target=1)]
        for rule in (lib.GammaRule, lib.Alpha1_Beta0_Rule):
            model.first.rule = rule()
            found.append(lib.LRP(model).attribute(x, target=1))
        return found

    agree(script, only=mixed)


@pytest.mark.parametrize("last", [nn.Conv2d(6, 6, 1), nn.MaxPool2d(2)])
def test_a_row_before_a_layer(last: nn.Module) -> None:
    def script(lib: Library) -> Any:
        model = prepared(Between([nn.ReLU(), nn.Tanh(), nn.Tanh(), nn.Tanh(), copy.deepcopy(last)], _mean))
        return lib.LayerLRP(model, [model.first, model.last]).attribute(images(size=5), target=1)

    agree(script, only=mixed)


def test_a_row_that_functional_code_reads_in_between() -> None:
    def script(lib: Library) -> Any:
        model = prepared(Between([nn.Tanh(), nn.Tanh(), nn.Tanh()], _mean, read_between=True))
        return lib.LRP(model).attribute(images(size=5), target=1)

    agree(script, only=mixed)


def test_relevance_of_an_activation_in_a_row() -> None:
    """It is found under its module's path, whatever becomes of its derivative."""
    lib, x = replacement(), images(size=5)
    model = prepared(Between([nn.ReLU(), nn.Tanh()], _mean))
    relu, tanh = model.row
    above, below = (lib.LayerLRP(model, tanh).attribute(x, 1, attribute_to_layer_input=into) for into in (False, True))
    slope = 1 - torch.tanh(relu(model.first(x)).detach()).square()
    assert torch.allclose(below, above * slope, rtol=1e-12)
    assert torch.equal(lib.LayerLRP(model, relu).attribute(x, 1), below)


FUNCTIONS: dict[str, Function] = {
    "amax": lambda h: h.amax((2, 3)),
    "max": lambda h: _mean(h + h.max(1, keepdim=True)[0]),
    "maximum": lambda h: _mean(torch.maximum(h, h.flip(1))),
    "topk": lambda h: h.flatten(2).topk(6, 2)[0][..., 5],
    "sort": lambda h: _mean(h.sort(1)[0]),
    "matmul": lambda h: _mean(h @ h.transpose(2, 3)),
    "einsum": lambda h: _mean(torch.einsum("bcij,bcjk->bcik", h, h)),
    "attention": lambda h: _mean(F.scaled_dot_product_attention(h, h, h)),
    "logsumexp": lambda h: h.flatten(2).logsumexp(2),
    "std": lambda h: _mean(h) / h.std((2, 3)),
    "prod": lambda h: _mean(h + h[:, :3].prod(1, keepdim=True)),
    "where": lambda h: _mean(torch.where(h > 0.1, h, 0.1 * h.flip(1))),
    "masked_fill": lambda h: _mean(h.masked_fill(h < 0.1, 0.0)),
    "mask": lambda h: _mean(h * (h > 0.1)),
    "gather": lambda h: _mean(h.gather(1, h.argsort(1))),
    "grid_sample": lambda h: _mean(F.grid_sample(h, torch.tanh(h[:, :2].permute(0, 2, 3, 1)), align_corners=False)),
    "scatter_add": lambda h: _mean(torch.zeros_like(h).scatter_add(1, h.argmax(1, keepdim=True), h[:, :1])),
}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_derivatives_are_those_of_the_second_pass(function: str) -> None:
    """Captum differentiates functional code under changed weights: other entries are chosen, other products taken."""

    def script(lib: Library) -> Any:
        model, found = prepared(Between([], FUNCTIONS[function])), []
        for rule in (lib.GammaRule(1.0), lib.Alpha1_Beta0_Rule(set_bias_to_zero=True)):
            model.first.rule = rule
            found.append(lib.LRP(model).attribute(images(size=5), target=1))
        return found

    agree(script, only=mixed)


@pytest.mark.parametrize(
    ("row", "ruled"),
    [([nn.ReLU], 0), ([nn.Dropout], 0), ([nn.ReLU, nn.Tanh], 1), ([nn.Tanh, nn.Dropout], 1), ([nn.Tanh, nn.Tanh], 0)],
)
def test_an_activation_with_a_rule_is_given_its_first_inputs_again(row: list[type[nn.Module]], ruled: int) -> None:
    """Captum ignores the rule, but writes the first pass's values over the tensor that the activation reads."""

    def script(lib: Library) -> Any:
        model = prepared(Between([make() for make in row], lambda h: _mean(h * h.sigmoid()) + h.amax((2, 3))))
        model.first.rule, model.row[ruled].rule = lib.Alpha1_Beta0_Rule(), lib.EpsilonRule()
        return lib.LRP(model).attribute(images(size=5), target=1)

    agree(script, only=mixed)


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradients[0] * 4 * x


def test_a_functions_own_backward_behind_a_changed_layer_is_refused() -> None:
    """Its backward is not called at other values than the model's; behind other layers it is Captum's."""

    def script(lib: Library, gamma: bool = False) -> Any:
        model = prepared(Between([], lambda h: _mean(_Doubled.apply(h))))
        if gamma:
            model.first.rule = lib.GammaRule()
        return lib.LRP(model).attribute(images(size=5), target=1)

    agree(script, only=mixed)
    with pytest.raises(fastlrp.UnsupportedOperationError, match=r"second forward pass.*EpsilonRule"):
        script(replacement(), gamma=True)
