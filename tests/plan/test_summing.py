"""Summands that fill a part of a sum are added to it: the numbers stay the same, nothing is written into zeros."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastlrp
from fastlrp.plan.passes import joining, summing
from fastlrp.plan.total import Total
from fastlrp.plan.window import Window
from fastlrp.run import runner

S, WIDE = 4, 6


class Parts(nn.Module):
    """Linear layers with something between them that takes parts of what the first gives."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.first, self.last = form, nn.Linear(WIDE, 2 * WIDE), nn.Linear(WIDE, 3)
        self.register_buffer("cos", torch.randn(S, 2 * WIDE))
        self.register_buffer("sin", torch.randn(S, 2 * WIDE))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.last(getattr(self, self.form)(y)).sum(1)

    def gated(self, y: Tensor) -> Tensor:
        gate, value = y.chunk(2, -1)
        return F.silu(gate) * value

    def halves(self, y: Tensor) -> Tensor:
        turned = torch.cat([-y[..., WIDE:], y[..., :WIDE]], -1)
        return (y * self.cos + turned * self.sin)[..., ::2]

    def pairs(self, y: Tensor) -> Tensor:
        turned = torch.stack([-y[..., 1::2], y[..., ::2]], -1).flatten(-2)
        return (y * self.cos + turned * self.sin)[..., :WIDE]

    def overlapping(self, y: Tensor) -> Tensor:
        return y[..., :WIDE] * 2 + y[..., 3 : 3 + WIDE] + y[..., 0:1]

    def part_and_whole(self, y: Tensor) -> Tensor:
        return (y + F.pad(y[:, :, 2:6], (2, 6)) * y).unflatten(-1, (WIDE, 2)).sum(-1)

    def tokens(self, y: Tensor) -> Tensor:
        return torch.cat([y[:, :1] * self.cos[:1], y[:, 1:]], 1)[..., :WIDE] * y[:, 1:2, WIDE:]


FORMS = ("gated", "halves", "pairs", "overlapping", "part_and_whole", "tokens")


def made(form: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Parts(form).eval().to(dtype), torch.randn(2, S, WIDE, dtype=dtype)


@pytest.mark.parametrize("form", FORMS)
def test_parts_of_a_sum_change_nothing(form, monkeypatch):
    model, x = made(form)
    explainer = fastlrp.Explainer(model, "attnlrp", example_inputs=x)
    found, seen = explainer(x, "all"), []
    (fused,) = explainer.plan.fusions
    for step, _ in fused:
        seen += [step.run] if isinstance(getattr(step, "run", None), summing._Summed) else []
    assert seen
    explainer.plan.check()
    exact: Any = fastlrp.explain(model, x, "all", "attnlrp", backend="reference")
    torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found[1], explainer(x[1:], "all")[0], rtol=1e-12, atol=1e-14)
    assert explainer.verify(x, [1, 2]).ok
    monkeypatch.setattr(joining, "sum_windows", lambda steps: [step for step, _ in steps])
    plain = fastlrp.Explainer(model, "attnlrp", example_inputs=x)
    torch.testing.assert_close(found, plain(x, "all"), rtol=1e-13, atol=1e-15)
    assert len(next(iter(plain.plan.fusions))) > len(fused)


@pytest.mark.parametrize("form", ["gated", "pairs"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parts_of_a_sum_in_lower_precision(form, dtype, monkeypatch):
    model, x = made(form, dtype)
    found = fastlrp.explain(model, x, "all", "attnlrp")
    monkeypatch.setattr(runner, "economize", lambda steps, known: steps)
    plain = fastlrp.explain(model, x, "all", "attnlrp")
    torch.testing.assert_close(found, plain, rtol=4 * torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)


def embedding(window: Window) -> Any:
    def embed(flow: Tensor) -> Tensor:
        result = flow.new_zeros(2, 3, 4, 5)
        window.room(result).copy_(flow)
        return result

    return embed


@pytest.mark.parametrize(
    "parts",
    [
        (None, Window(3, 1, 2, 5)),
        (Window(2, 0, 2, 4, step=2), Window(2, 1, 2, 4, step=2)),
        (Window(3, 4, 1, 5, drops=True), None, Window(3, 0, 2, 5, step=2)),
        (Window(3, 0, 4, 5), Window(3, 3, 2, 5)),
        (Window(2, 0, 4, 4), Window(3, 0, 5, 5)),
    ],
)
@pytest.mark.parametrize("plain", [0, 1, 2])
def test_a_sum_of_windows(parts, plain):
    total = Total(len(parts), plain)
    summed = summing._Summed(total, parts, tuple(None if w is None else embedding(w) for w in parts))
    flows = [torch.randn(2, 3, 4, 5) if w is None else torch.randn_like(w.room(torch.empty(2, 3, 4, 5))) for w in parts]
    whole = [f if w is None else embedding(w)(f) for f, w in zip(flows, parts, strict=True)]
    factors = [torch.randn(2, *[(4, 5), (1, 5), (4, 1)][i % 3]) for i in range(len(parts) - plain)]
    before = [t.clone() for t in (*flows, *factors)]
    expected = total(*whole, *factors)
    torch.testing.assert_close(summed(*flows, *factors), expected)
    assert all(torch.equal(t, old) for t, old in zip((*flows, *factors), before, strict=True))
    mixed = [factor.double() for factor in factors]
    torch.testing.assert_close(summed(*flows, *mixed), total(*whole, *mixed))
    leaves = [t.clone().requires_grad_() for t in flows]
    assert summed(*leaves, *factors).requires_grad
    for position in range(plain):
        if parts[position] is None:
            own = [t.clone() for t in flows]
            result = summed.into(position, *own, *factors)
            assert result is own[position]
            torch.testing.assert_close(result, expected)
