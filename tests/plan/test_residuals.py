"""Residual sums whose ReLU and share are one step with them: the same bits as apart."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastlrp
from fastlrp import composites
from fastlrp.backends.extension import loaded
from fastlrp.plan import plan

C = loaded()
pytestmark = pytest.mark.skipif(not hasattr(C, "elementwise_rectified_sum"), reason="the extension is not built")


class Residual(nn.Module):
    """Three sums: one that a ReLU alone reads, one that another reader needs as it is, and one of a number."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(c, 8, 3, padding=1) for c in (3, 8, 8))
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.first(x).relu()
        x = (self.second(x) + x).relu()
        z = self.third(x) + x
        return self.head((z.relu() + z.tanh() + 1.0).mean((2, 3)))


def explained(composite, x, **options):
    torch.manual_seed(0)
    explainer = fastlrp.Explainer(Residual().eval(), composite, **options)
    names = [step.name for step, _ in explainer.plan.forward_schedule().steps]
    return explainer, explainer(x, [0, 2]), [name for name in names if "(add)" in name and "relu" in name]


@pytest.mark.parametrize("name", ["epsilon_plus", "epsilon_gamma_box", "epsilon_alpha2_beta1", "gradient"])
def test_one_step_gives_the_same_bits(name, monkeypatch):
    bounds = {"low": -3.0, "high": 3.0} if name.endswith("box") else {}
    composite, x = composites.preset(name, **bounds), torch.randn(2, 3, 9, 7)
    explainer, found, together = explained(composite, x, example_inputs=x)
    assert len(together) == (0 if name == "gradient" else 1)
    monkeypatch.setattr(plan, "fuse_residuals", lambda steps, kept: steps)
    _, apart, none = explained(composite, x, example_inputs=x)
    assert none == []
    assert torch.equal(found, apart)
    right = explainer.forward(x).relevance([0, 2])
    assert torch.equal(found, right)


def test_arguments_are_checked():
    x = torch.rand(2, 3)
    y, share = C.elementwise_rectified_sum(x, -x, 0.0)
    assert not y.any()
    assert not share.any(), "0 / 0"
    assert C.elementwise_rectified_sum(x, x, None)[1] is None
    for other, words in ((torch.rand(3, 2), "second must have shape"), (torch.rand(3, 2).t(), "lie in memory alike")):
        with pytest.raises(ValueError, match=words):
            C.elementwise_rectified_sum(x, other, None)
    with pytest.raises(TypeError, match="second must be Float"):
        C.elementwise_rectified_sum(x, x.double(), None)
