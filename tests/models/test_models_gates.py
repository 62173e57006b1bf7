"""A gate stays one through conversions and moves, in every dtype: the signal takes all (Arras et al. 2017)."""

from __future__ import annotations

from collections.abc import Callable

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
