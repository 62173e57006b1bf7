"""Decays as scans write them, ``exp`` of masked differences: exp(0) is a constant, exp(-inf) does not look there."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fastlrp import Explainer, composites, rules


class Scan(nn.Module):
    """Sums of earlier entries, each by ``exp`` of the difference of two running sums; at the own entry that is 0."""

    def forward(self, x: Tensor) -> Tensor:
        steps = x.cumsum(1)
        late = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        decay = (steps[:, :, None] - steps[:, None]).masked_fill(late, -math.inf).exp()
        return (decay * x[:, None]).sum(-1)


def by_autograd(x: Tensor) -> Tensor:
    """All to the decay, the broadcast entry is a gate; ``exp(u) / u`` held fixed, none where u is 0 or -inf."""
    x = x.requires_grad_()
    steps, size = x.cumsum(1), x.shape[1]
    u = steps[:, :, None] - steps[:, None]
    early = torch.ones(size, size, dtype=torch.bool).tril(-1)
    decay = torch.where(early, u * (u.exp() / u).detach().nan_to_num(), torch.eye(size, dtype=x.dtype))
    rows = (decay * x[:, None].detach()).sum(-1)
    return torch.stack([torch.autograd.grad(rows[:, k].sum(), x, retain_graph=True)[0] * x for k in range(size)], 1)


def test_decays_equal_autograd_and_are_verified() -> None:
    x = torch.tensor([[0.5, -0.3, 0.8, 0.2], [-0.6, 0.4, 0.1, -0.9]], dtype=torch.float64)
    explainer = Explainer(Scan(), "attnlrp", example_inputs=x)
    torch.testing.assert_close(explainer(x, "all"), by_autograd(x.clone()).detach(), rtol=1e-12, atol=1e-12)
    assert explainer.verify(x, "all").ok


@pytest.mark.parametrize("operation", [torch.exp, torch.cos, torch.sigmoid])
def test_what_a_constant_at_zero_keeps_is_in_the_ledger(operation) -> None:
    class Last(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return operation(x)

    x = torch.tensor([[0.0, 0.7]], dtype=torch.float64)
    # Relevance that arrives as relevance, and per unit of the output behind a sum: the constant keeps it in both.
    for model in (Last(), nn.Sequential(Last(), nn.Linear(2, 2, bias=False).double())):
        passes = composites.attnlrp().with_entries((composites.kind("activation"), rules.Pass(chained=True)))
        explainer = Explainer(model, passes, example_inputs=x)
        found = explainer(x, "all")
        assert bool((found[0, :, 0] == 0).all())
        assert bool((found[0, 1, 1] != 0).all())
        report = explainer.verify(x, "all")
        assert report.ok, str(report)
        assert abs(report.kept["bias"]) > 1e-3
        assert abs(report.kept["unexplained"]) < 1e-12
