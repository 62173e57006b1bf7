"""A gate stays one through conversions, moves, factors and clamps, in every dtype: signals take all (Arras 2017)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastlrp

CARRIED: dict[str, Callable[[Tensor], Tensor]] = {
    "converted": lambda h: torch.sigmoid(h.float()).to(h.dtype),
    "viewed": lambda h: torch.sigmoid(h.view(-1, 2, 3)).reshape(-1, 6),
    "squeezed": lambda h: torch.sigmoid(h.unsqueeze(1)).squeeze(1),
    "a part": lambda h: torch.sigmoid(torch.cat([h, h], 1))[:, 6:],
    "softmax, converted": lambda h: h.float().softmax(-1).to(h.dtype),
    "complement": lambda h: 1 - torch.sigmoid(h),
    "a multiple": lambda h: -2 * torch.sigmoid(h) / 3,
    "masked": lambda h: torch.sigmoid(h).masked_fill(torch.arange(6) < 2, 0.5) * (torch.arange(6) < 4),
    "clamped": lambda h: torch.sigmoid(h).clamp(min=0.3),
    "scale of a norm, converted": lambda h: torch.rsqrt(h.float().square() + 1).to(h.dtype),
}


class Gated(nn.Module):
    """The product of a signal and a gate of the same shape."""

    def __init__(self, gate: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.signal, self.control, self.head = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 3)
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.signal(x) * self.gate(self.control(x)))


@pytest.mark.parametrize("composite", ["epsilon_plus", "attnlrp"])
@pytest.mark.parametrize("gate", CARRIED.values(), ids=CARRIED.keys())
def test_a_gate_that_is_carried_takes_nothing(gate: Callable[[Tensor], Tensor], composite: str) -> None:
    model = Gated(gate).double().eval()
    x = torch.linspace(-1, 1, 8, dtype=torch.float64).view(2, 4)
    found = fastlrp.Explainer(model, composite, example_inputs=x)(x, [0, 2])
    epsilon = 1e-6 if composite == "epsilon_plus" else 0.0

    def stabilized(z: Tensor) -> Tensor:
        return z + epsilon * torch.where(z >= 0, 1.0, -1.0)

    with torch.no_grad():
        signal = model.signal(x)
        product = signal * model.gate(model.control(x))
        scores = model.head(product)
        quotients = (scores / stabilized(scores))[:, [0, 2]].unsqueeze(-1)
        R = product.unsqueeze(1) * quotients * model.head.weight[[0, 2]]
        expected = x.unsqueeze(1) * ((R / stabilized(signal).unsqueeze(1)) @ model.signal.weight)
    # Gates in float32 differ by 1e-8.
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("bounds", [{"min": -9.0, "max": 9.0}, {"min": torch.tensor(-0.5), "max": torch.tensor(0.5)}])
def test_a_clamped_signal_is_no_gate_of_cp_lrp(bounds: dict[str, Any]) -> None:
    """As in Gemma 4, whose linear layers clamp what they give: ``act(g)`` is the gate, whatever is clamped."""

    class Clamped(nn.Module):
        def __init__(self, held: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.signal, self.control, self.head = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 3)
            self.held = held

        def forward(self, x: Tensor) -> Tensor:
            gate = nn.functional.gelu(self.control(x).clamp(**bounds)).clamp(**bounds)
            signal = self.signal(x)
            clamped = signal.clamp(**bounds)
            if self.held:  # The slopes of the definition.
                clamped = signal * (clamped / signal).detach()
                gate = gate.detach()
            return self.head(clamped * gate)

    x = torch.linspace(-1, 1, 8, dtype=torch.float64).view(2, 4)
    found = fastlrp.explain(Clamped(False).double().eval(), x, "all", "cp_lrp")
    point = x.clone().requires_grad_()
    scores = Clamped(True).double()(point)
    expected = [torch.autograd.grad(scores[:, k].sum(), point, retain_graph=True)[0] * x for k in range(3)]
    torch.testing.assert_close(found, torch.stack(expected, 1), rtol=1e-10, atol=1e-12)


def test_a_clamp_at_zero_is_an_activation_of_cp_lrp() -> None:
    """``clamp(min=0)`` is a ReLU: all relevance goes to the other factor."""

    class Rectified(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.signal, self.control = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.signal(x) * self.control(x).clamp(min=0)

    x = torch.linspace(-1, 1, 8, dtype=torch.float64).view(2, 4)
    model = Rectified().double().eval()
    found = fastlrp.explain(model, x, "all", "cp_lrp")
    gate = model.control(x).clamp(min=0).detach()
    expected = x.unsqueeze(1) * gate.unsqueeze(-1) * model.signal.weight.detach()
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_numbers_in_the_place_of_nan_are_no_activation_of_cp_lrp() -> None:
    """A signal behind ``nan_to_num`` was taken for what an activation made, and shared with the gate."""

    class Cleaned(nn.Module):
        def __init__(self, clean: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.signal, self.control, self.head = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 3)
            self.clean = clean

        def forward(self, x: Tensor) -> Tensor:
            signal = self.signal(x)
            signal = signal.nan_to_num(0.0) if self.clean else signal
            return self.head(signal * nn.functional.gelu(self.control(x)))

    x = torch.linspace(-1, 1, 8, dtype=torch.float64).view(2, 4)
    found, expected = (fastlrp.explain(Cleaned(clean).double().eval(), x, "all", "cp_lrp") for clean in (True, False))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def _swish(h: Tensor) -> Tensor:
    return h * (1.7 * h).sigmoid()


WRITTEN: dict[str, Callable[[Tensor], Tensor]] = {
    "swish": lambda h: h * torch.sigmoid(h),
    "quick GELU": lambda h: torch.sigmoid(1.702 * h) * h,
    "clamped swish": lambda h: _swish(h.clamp(max=0.9)),
    "swish with a sigmoid of another dtype": lambda h: h * torch.sigmoid(1.702 * h.float()).to(h.dtype),
    "a multiple": lambda h: 1.7 * nn.functional.silu(h) / 2,
    "masked": lambda h: nn.functional.gelu(h).masked_fill(torch.arange(6) < 2, 0.0),
}


@pytest.mark.parametrize("activation", WRITTEN.values(), ids=WRITTEN.keys())
def test_what_a_written_activation_made_is_a_gate_of_cp_lrp(activation: Callable[[Tensor], Tensor]) -> None:
    """As what one operation made (GPT-OSS writes its swish): all relevance goes to the other factor."""
    model = Gated(activation).double().eval()
    x = torch.linspace(-1, 1, 8, dtype=torch.float64).view(2, 4)
    found = fastlrp.explain(model, x, "all", "cp_lrp")
    with torch.no_grad():
        gate = activation(model.control(x)).unsqueeze(1)
        expected = x.unsqueeze(1) * ((gate * model.head.weight) @ model.signal.weight)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
