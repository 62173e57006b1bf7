"""Layers of one channel, one output or one channel per group, under every rule, by the sparse kernels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fastlrp import Explainer, rules
from fastlrp.composites import Composite, epsilon, first

RULES = {
    "epsilon": rules.Epsilon(1e-6),
    "zplus": rules.ZPlus(),
    "alpha_beta": rules.AlphaBeta(2, 1),
    "gamma": rules.Gamma(0.25),
    "gamma_no_bias": rules.Gamma(0.25, zero_bias=True),
    "plain_gamma": rules.PlainGamma(0.25),
    "wsquare": rules.WSquare(),
    "flat": rules.Flat(),
    "gradient": rules.Gradient(),
    "zbox": rules.ZBox(-1.0, 1.0),
}
# What stands in the middle: layers whose weight has one input channel, one output channel or both, also per group.
MIDDLE = {
    "one to one": (lambda: nn.Conv2d(1, 1, 3, padding=1), 1, 1),
    "one to one, one tap": (lambda: nn.Conv2d(1, 1, 1), 1, 1),
    "one to one, transposed": (lambda: nn.ConvTranspose2d(1, 1, 3, padding=1), 1, 1),
    "one to three": (lambda: nn.Conv2d(1, 3, 3, padding=1), 1, 3),
    "three to one": (lambda: nn.Conv2d(3, 1, 3, padding=1), 3, 1),
    "depthwise": (lambda: nn.Conv2d(3, 3, 3, padding=1, groups=3), 3, 3),
    "depthwise, transposed": (lambda: nn.ConvTranspose2d(3, 3, 3, padding=1, groups=3), 3, 3),
    "two outputs per channel": (lambda: nn.Conv2d(3, 6, 3, padding=1, groups=3), 3, 6),
    "two inputs per output": (lambda: nn.Conv2d(6, 3, 3, padding=1, groups=3), 6, 3),
}


# These sum over channels first, or would need twice the channels in each group: they have no sparse form.
DENSE_ONLY = {"flat"}
DENSE_ONLY_IN_GROUPS = {"zbox"}
DENSE_ONLY_IN_GROUPS_IF_SIGNED = {"zplus", "alpha_beta", "gamma", "gamma_no_bias"}

pytestmark = pytest.mark.usefixtures("captured_once")


def named(**layers: nn.Module) -> nn.Sequential:
    model = nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)
    return model.double()


def check(model: nn.Module, x: Tensor, rule: str, dense_only: bool = False) -> None:
    """The sparse way, the dense way and the reference agree."""
    composite = Composite(((first(), rules.Epsilon()), ("middle", RULES[rule]))) | epsilon()
    targets = [i % 4 for i in range(40)]
    sparse = Explainer(model, composite, paths="sparse")
    found, expected = sparse(x, targets), Explainer(model, composite, paths="dense")(x, targets)
    assert ("middle" in sparse.plan.latest_paths) != dense_only
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12, msg=lambda text: f"{rule}: {text}")
    report = sparse.verify(x, targets)
    assert report.ok, report


@pytest.mark.each_value
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("case", MIDDLE)
def test_convolutions(case: str, signed: bool) -> None:
    make, inputs, outputs = MIDDLE[case]
    middle = make()
    model = named(
        below=nn.Conv2d(2, inputs, 3, padding=1), act=nn.Tanh() if signed else nn.ReLU(), middle=middle,
        pre=nn.Tanh(), above=nn.Conv2d(outputs, 4, 1), flat=nn.Flatten(),
    )  # fmt: skip
    x = torch.randn(2, 2, 5, 4, dtype=torch.float64)
    for rule in RULES:
        in_groups = rule in DENSE_ONLY_IN_GROUPS or (signed and rule in DENSE_ONLY_IN_GROUPS_IF_SIGNED)
        dense_only = in_groups if middle.groups > 1 else rule in DENSE_ONLY
        check(model, x, rule, dense_only)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (1, 3), (3, 1)])
def test_linear_layers(inputs: int, outputs: int, signed: bool) -> None:
    model = named(
        below=nn.Linear(2, inputs), act=nn.Tanh() if signed else nn.ReLU(), middle=nn.Linear(inputs, outputs),
        pre=nn.Tanh(), above=nn.Linear(outputs, 4),
    )  # fmt: skip
    for rule in RULES:
        check(model, torch.randn(3, 2, dtype=torch.float64), rule, rule in DENSE_ONLY)
