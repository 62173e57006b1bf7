"""Relevance in float16 and bfloat16: finite, and as near to float64 as PyTorch itself comes in that dtype."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlrp import Explainer, composites, rules
from fastlrp.composites import Composite, first, kind
from fastlrp.stabilizer import Stabilizer
from tests.api.models import relative_error

COMPOSITES: dict[str, Callable[[], Composite]] = {
    "epsilon_plus": composites.epsilon_plus,
    "epsilon": composites.epsilon,
    "gamma": composites.gamma,
    "alpha_beta": composites.alpha_beta,
    "flat": composites.flat,
    "wsquare": composites.wsquare,
    "epsilon_plus_flat": composites.epsilon_plus_flat,
    "excitation_backprop": composites.excitation_backprop,
    "box": lambda: Composite(((first(), rules.ZBox(-1.0, 1.5)),)) | composites.epsilon_plus(),
    "relative": lambda: Composite(((kind("conv"), rules.Epsilon(Stabilizer(0.1, relative="sample"))),))
    | composites.epsilon(),
    "pool rules": lambda: Composite(((kind("avg_pool"), rules.AlphaBeta(2, 1)),)) | composites.alpha_beta(),
    "average of maxima": lambda: composites.epsilon_plus(max_pool="average"),
}  # fmt: skip


def average() -> nn.Module:
    """ReLUs that are zero in whole windows of an average."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4),
    )  # fmt: skip


def maxima() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8),
        nn.ReLU(), nn.Flatten(), nn.Linear(128, 16), nn.ReLU(), nn.Linear(16, 4),
    )  # fmt: skip


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = F.relu(self.a(x))
        y = F.max_pool2d(F.relu(y + self.b(y)), 2)
        scores: Tensor = self.head(y.mean((2, 3)))
        return scores


MODELS: dict[str, Callable[[], nn.Module]] = {"average": average, "maxima": maxima, "residual": Residual}

pytestmark = pytest.mark.usefixtures("captured_once")


def in_both(model: nn.Module, x: Tensor, dtype: torch.dtype) -> tuple[nn.Module, Tensor, nn.Module, Tensor]:
    """The model and its input in the narrow dtype, and the same numbers in float64."""
    narrow = model.eval().to(dtype)
    return narrow, x.to(dtype), copy.deepcopy(narrow).double(), x.to(dtype).double()


def own_error(model: nn.Module, x: Tensor, exact: nn.Module, exact_x: Tensor) -> float:
    """How far the gradient times input that PyTorch computes in the narrow dtype is from that in float64."""

    def product(model: nn.Module, x: Tensor) -> Tensor:
        point = x.clone().requires_grad_()
        return torch.autograd.grad(model(point)[:, 1].sum(), point)[0] * x

    return relative_error(product(model, x), product(exact, exact_x))


@pytest.mark.each_value
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_as_near_as_pytorch_itself(name: str, dtype: torch.dtype) -> None:
    model, x, exact, exact_x = in_both(MODELS[name](), torch.randn(2, 3, 8, 8).relu(), dtype)
    own = max(own_error(model, x, exact, exact_x), torch.finfo(dtype).eps)
    for label, composite in COMPOSITES.items():
        found, expected = Explainer(model, composite())(x, [1]), Explainer(exact, composite())(exact_x, [1])
        assert bool(torch.isfinite(found).all()), label
        assert relative_error(found, expected) <= 2 * own, f"{label}: PyTorch's own error is {own:.1e}"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [1e-2, 1e-4])
def test_small_weights_under_w_squared(size: float, dtype: torch.dtype) -> None:
    """The square of 1e-4 is 0 in float16."""
    model = nn.Sequential(nn.Linear(10, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False))
    nn.init.uniform_(model[0].weight, -size, size)
    rule = rules.WSquare(0.0)
    composite = Composite(((first(), rule),)) | composites.epsilon()
    narrow, x, exact, exact_x = in_both(model, torch.rand(4, 10), dtype)
    found, expected = (Explainer(m, composite)(y, [0, 1], "one") for m, y in ((narrow, x), (exact, exact_x)))
    assert bool((expected != 0).any())
    assert relative_error(found, expected) <= 16 * torch.finfo(dtype).eps


LAYERS = {
    "conv": lambda: (nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)),
    "groups": lambda: (nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 64, 3, padding=1, groups=2)),
    "transposed": lambda: (nn.Conv2d(3, 32, 3, padding=1), nn.ConvTranspose2d(32, 16, 4, 2)),
    "linear": lambda: (nn.Flatten(), nn.Linear(432, 512), nn.Linear(512, 2048)),
}


@pytest.mark.parametrize(("rule", "error"), [(rules.Flat(), 5e-3), (rules.WSquare(), 1e-3)], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_shares_among_many_inputs_stay_in_range(name: str, rule: rules.Rule, error: float) -> None:
    """Relevance of 1e-4 of an output, a share of which is 1e-7: what float16 rounds to its smallest number."""
    layers = [module for layer in LAYERS[name]() for module in (layer, nn.ReLU())]
    model = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(4))
    x = torch.randn(2, 3, 12, 12)
    model(x)
    narrow, x, exact, exact_x = in_both(model, x, torch.float16)
    composite, R = composites.uniform(rule), torch.full((1, 4), 0.01)
    found, expected = (Explainer(m, composite)(y, R) for m, y in ((narrow, x), (exact, exact_x)))
    # Measured: 6e-4 to 2.5e-3, as relevance of 2e-6 itself has two digits, and 3e-4 to 4e-4. Where shares are formed in
    # float16 0.7, and 1e-3 to 8e-3.
    assert relative_error(found, expected) <= error


@pytest.mark.parametrize("stabilizer", [1e-3, Stabilizer(1e-3, relative="sample")], ids=str)
@pytest.mark.parametrize("rule", [rules.Gamma, rules.PlainGamma])
def test_weights_that_a_rule_makes_large(rule: type[rules.Gamma], stabilizer: float | Stabilizer) -> None:
    """``100 W+`` times ``1 / z``, which is as much smaller than without."""
    layers = (nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Flatten())
    narrow, x, exact, exact_x = in_both(
        nn.Sequential(*layers, nn.Linear(4608, 4)), torch.rand(2, 3, 12, 12), torch.float16
    )
    composite, R = composites.uniform(rule(100.0, stabilizer)), torch.full((1, 4), 0.01)
    found, expected = (Explainer(m, composite)(y, R) for m, y in ((narrow, x), (exact, exact_x)))
    # Measured: 6e-4 to 7e-4; 4e-3 to 1e-2 where both are as they are, and 1 two layers further down.
    assert relative_error(found, expected) <= 2e-3


@pytest.mark.parametrize("rule", [rules.Norm(), rules.Epsilon()])
def test_relevance_over_an_average_near_zero_is_in_range(rule: rules.Rule) -> None:
    """Relevance, not relevance per activation, comes to a pool of 2e-5: each entry gets a quarter all the same."""
    model = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        model[2].weight.fill_(1)
    composite = Composite(((kind("linear"), rules.Flat()), (kind("avg_pool"), rule)))
    x = torch.full((1, 1, 4, 4), 2e-5)
    x[:, :, :2, :2] = 0
    narrow, x, exact, exact_x = in_both(model, x, torch.float16)
    initial = torch.full((1, 1, 2), 20.0)
    found = Explainer(narrow, composite)(x, initial.half())
    expected = Explainer(exact, composite)(exact_x, initial.double())
    assert bool(torch.isfinite(found).all())
    torch.testing.assert_close(found.double(), expected, rtol=2e-3, atol=0)
