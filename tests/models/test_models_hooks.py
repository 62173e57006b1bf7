"""Hooks in and on a model: those that change what it computes, and those on gradients."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastlrp
from tests.models.custom_functions import Model, derivative, gradient


def _twice(m: Any, h: Tensor) -> Tensor:
    h.register_hook(lambda g: g * 2)
    y: Tensor = m.inner(h).tanh() + h
    return y


def _late(m: Any, h: Tensor) -> Tensor:
    """The hook gets what comes from those that have read the tensor before."""
    y = h.tanh()
    z = y * 2
    y.register_hook(lambda g: g.clamp(-0.05, 0.05))
    return y + z


def _several(m: Any, h: Tensor) -> Tensor:
    """In the order in which they were put there."""
    h.register_hook(lambda g: g.clamp(-0.1, 0.1))
    h.register_hook(lambda g: g * 3 + 1)
    return h.sin() + h


def _on_a_view(m: Any, h: Tensor) -> Tensor:
    part = h[:, :2]
    part.register_hook(lambda g: g * 3)
    return h * torch.cat([part.tanh(), part, part[:, :1]], 1)


def _before_a_write(m: Any, h: Tensor) -> Tensor:
    h.register_hook(lambda g: g * 2)
    h.mul_(3)
    return h.tanh() + h


def _removed(m: Any, h: Tensor) -> Tensor:
    handle = h.register_hook(lambda g: g * 2)
    h.register_hook(lambda g: g * 3)
    handle.remove()
    return h.tanh()


def _kept(m: Any, h: Tensor) -> Tensor:
    h.retain_grad()
    m.inner.weight.register_hook(lambda g: None)
    return h.tanh()


F64 = torch.float64


class OnInput(nn.Module):
    def __init__(self, part: Any) -> None:
        super().__init__()
        self.model = Model(part)

    def forward(self, x: Tensor) -> Tensor:
        x.register_hook(lambda g: g * 2)
        scores: Tensor = self.model(x)
        return scores


HOOKS: dict[str, Callable[[], nn.Module]] = {
    "twice": lambda: Model(_twice),
    "late": lambda: Model(_late),
    "several": lambda: Model(_several),
    "on a view": lambda: Model(_on_a_view),
    "before a write": lambda: Model(_before_a_write),
    "removed": lambda: Model(_removed),
    "on the input": lambda: OnInput(lambda m, h: h.tanh()),
}


@pytest.mark.parametrize("name", HOOKS)
def test_gradients_go_through_hooks_on_tensors(name: str) -> None:
    model, x = HOOKS[name]().eval(), torch.randn(3, 4, dtype=F64)
    torch.testing.assert_close(gradient(model, x), derivative(model, x), rtol=1e-12, atol=1e-12)
    for composite in ("epsilon", "gradient"):
        assert fastlrp.Explainer(model, composite).verify(x, "all").ok


def test_a_hook_may_look_alone() -> None:
    """As Grad-CAM keeps a gradient; relevance has none."""
    seen: list[Tensor] = []

    def looks(m: Any, h: Tensor) -> Tensor:
        h.register_hook(seen.append)
        return h.tanh()

    x = torch.randn(3, 4, dtype=F64)
    fastlrp.explain(Model(looks), x, [0, 2], "epsilon")
    assert not seen
    fastlrp.explain(Model(looks), x, [0, 2], "gradient")
    assert [tuple(g.shape) for g in seen] == [(3, 5), (3, 5)]
    fastlrp.explain(Model(_kept), x, 0, "gradient")


def test_what_hooks_cannot_be_followed_is_told() -> None:
    def on_complex(m: Any, h: Tensor) -> Tensor:
        z = torch.fft.rfft(h)
        z.register_hook(lambda g: g * 2)
        return torch.fft.irfft(z, n=5)

    with pytest.raises(fastlrp.CaptureError, match=r"hook on the gradient of a complex tensor.*view_as_real"):
        fastlrp.explain(Model(on_complex), torch.randn(3, 4, dtype=F64), 0)


def test_backward_hooks_of_modules_are_told() -> None:
    model, x = Model(lambda m, h: m.inner(h)), torch.randn(3, 4, dtype=F64)
    model.inner.register_full_backward_hook(lambda module, given, came: None)
    with pytest.warns(
        UserWarning, match=r"module 'inner' \(Linear\) has a backward hook \(<lambda>\), which is not called"
    ):
        fastlrp.explain(model, x, 0, "gradient")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastlrp.explain(model, x, 0, "epsilon")


def _energy(m: Any, h: Tensor) -> Tensor:
    point = h.clone().requires_grad_(True)
    (force,) = torch.autograd.grad(m.inner(point).tanh().sum(), point, create_graph=True)
    return force


def _energy_by_function(m: Any, h: Tensor) -> Tensor:
    force: Tensor = torch.func.grad(lambda point: m.inner(point).tanh().sum())(h)
    return force


@pytest.mark.parametrize("part", [_energy, _energy_by_function])
def test_a_model_that_takes_a_gradient_itself_is_told(part: Any) -> None:
    with pytest.raises(fastlrp.CaptureError, match=r"takes a gradient itself.*explain the part below the gradient"):
        fastlrp.explain(Model(part), torch.randn(3, 4, dtype=F64), 0)
