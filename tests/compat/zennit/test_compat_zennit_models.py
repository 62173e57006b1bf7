"""Every preset of Zennit on torchvision's models, with and without Zennit's canonizers, in both precisions.

Nothing is done about the eps that Zennit's merged batch norms keep: what is explained is the canonized model itself.
Measured over all of them: 4e-15 in float64.
"""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.compat.zennit.both import attribute, check, difference, ours, rules_of, theirs
from tests.shortened import member
from tests.torchvision_models import random_model

pytestmark = pytest.mark.slow

composites = pytest.importorskip("zennit.composites")
canonizers = pytest.importorskip("zennit.torchvision", exc_type=ImportError)

CANONIZERS = {
    "vgg11": canonizers.VGGCanonizer,
    "vgg11_bn": canonizers.VGGCanonizer,
    "resnet18": canonizers.ResNetCanonizer,
}
PRESETS = [name for name in composites.COMPOSITES if name != "beta_smooth"]
"""ReLUs are in place here, where Zennit's beta_smooth reads an overwritten input: see test_compat_zennit_structures."""


@cache
def _network(name: str, dtype: torch.dtype, size: str = "short") -> nn.Module:
    """The same for all tests: what canonizers and composites change in it they put back."""
    return member(name, size, dtype=dtype, classes=20)


def _input(dtype: torch.dtype, side: int = 64) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)


def _composite(name: str, *canonizers: Any) -> Any:
    options: dict[str, Any] = {"canonizers": list(canonizers)}
    if name == "epsilon_gamma_box":
        options.update(low=-4.0, high=4.0)
    return composites.COMPOSITES[name](**options)


SOME = ("epsilon_plus", "epsilon_gamma_box", "guided_backprop")
CASES = [
    *(("resnet18", preset, True) for preset in PRESETS),
    *(("vgg11_bn", preset, True) for preset in (*SOME, "epsilon_alpha2_beta1_flat", "excitation_backprop")),
    *(("vgg11", preset, True) for preset in SOME),
    # Without a canonizer; VGG-11 has no batch norm, so that there it is the same.
    *(("resnet18", preset, False) for preset in (*SOME, "epsilon_plus_flat", "epsilon_alpha2_beta1")),
    *(("vgg11_bn", preset, False) for preset in SOME[:2]),
]
REST = [*product(("resnet18", "vgg11_bn"), PRESETS, (True, False)), *(("vgg11", preset, True) for preset in SOME)]
"""Whole networks; those of CASES have fewer blocks and channels."""


@pytest.mark.parametrize(
    ("size", "name", "preset", "canonized"),
    [*(("short", *case) for case in CASES), *(pytest.param("whole", *case, marks=pytest.mark.full) for case in REST)],
)
def test_preset(size: str, name: str, preset: str, canonized: bool) -> None:
    model = _network(name, torch.float64, size)
    composite = _composite(preset, *([CANONIZERS[name]()] if canonized else []))
    x, start = _input(torch.float64, 48), torch.eye(20, dtype=torch.float64)[[3, 7]]
    expected = attribute(theirs, model, composite, x, start)
    attributor = ours.Gradient(model, composite)
    check(attributor(x, start), expected)
    shown = rules_of(attributor)
    assert not any("as it is" in rule for found in shown.values() for rule in found), "all rules are translated"


@pytest.mark.parametrize("preset", ["epsilon_plus_flat", "epsilon_gamma_box"])
@pytest.mark.parametrize("name", list(CANONIZERS))
def test_single_precision(name: str, preset: str) -> None:
    """Measured: 2e-5 (ResNet-18, EpsilonGammaBox), where Zennit is as far from its own float64 result."""
    model = _network(name, torch.float32)
    composite = _composite(preset, CANONIZERS[name]())
    x = _input(torch.float32)
    start = lambda output: output * torch.eye(20)[[3, 7]]  # noqa: E731
    check(attribute(ours, model, composite, x, start), attribute(theirs, model, composite, x, start))


def test_the_whole_vgg11_as_torchvision_makes_it() -> None:
    model = random_model("vgg11", dtype=torch.float32)
    composite = _composite("epsilon_alpha2_beta1", canonizers.VGGCanonizer())
    x, start = _input(torch.float32, 32), torch.eye(1000)[[3, 640]]
    check(attribute(ours, model, composite, x, start), attribute(theirs, model, composite, x, start))


@pytest.mark.parametrize("batch_norms", ["merged", "bare"])
def test_residual_sums_get_the_rule_of_zennits_sum_module(batch_norms: str) -> None:
    """Norm where the canonizer makes a module of the sum, the gradient where it stays a ``+``."""
    model, x = _network("resnet18", torch.float64), _input(torch.float64, 32)
    composite = _composite("epsilon_plus", *([canonizers.ResNetCanonizer()] if batch_norms == "merged" else []))
    attributor = ours.Gradient(model, composite)
    attributor(x)
    shown = rules_of(attributor)
    if batch_norms == "merged":
        assert shown["layer1.0.canonizer_sum"] == ["Norm(stabilizer=1e-06, of_sum=False)"]
        assert "layer1.0" not in shown
    else:
        assert shown["layer1.0"] == ["Gradient()"]
        assert shown["layer1.0.bn1"] == ["Pass()"]


def test_many_targets_are_zennits_loop() -> None:
    model, x = _network("resnet18", torch.float64), _input(torch.float64, 48)
    composite = _composite("epsilon_gamma_box", canonizers.ResNetCanonizer())
    classes = [3, 0, 11]
    with theirs.Gradient(model, composite) as attributor:
        found = [attributor(x, lambda y, c=c: y * torch.eye(20, dtype=y.dtype)[[c, c]]) for c in classes]
    expected = torch.stack([relevance for _, relevance in found])
    with ours.Gradient(model, composite) as attributor:
        output, at_once = attributor(x, targets=classes)
        _, stacked = attributor(x, output * torch.eye(20, dtype=output.dtype)[classes].unsqueeze(1))
    assert at_once.shape == (3, 2, 3, 48, 48)
    assert difference(at_once.flatten(0, 1), expected.flatten(0, 1)) <= 1e-12
    assert difference(stacked.flatten(0, 1), expected.flatten(0, 1)) <= 1e-12
