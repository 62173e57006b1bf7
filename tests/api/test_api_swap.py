"""``torch.utils.swap_tensors``, by which ``module.to()`` may convert parameters, works after an explanation."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import fastlrp
from fastlrp import Explainer
from fastlrp.compat import captum

X = torch.linspace(-1, 1, 2 * 3 * 12 * 12).view(2, 3, 12, 12)


@pytest.fixture(autouse=True)
def _swapping() -> Iterator[None]:
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(before)


def network() -> nn.Sequential:
    """Weights that are merged, that are laid out anew, and that lie as they should (a kernel of one pixel)."""
    torch.manual_seed(0)
    first, one, last = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 256, 1), nn.Conv2d(256, 32, 1, bias=False)
    layers = (first, nn.BatchNorm2d(32), nn.ReLU(), one, nn.ReLU(), last, nn.ReLU(), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(32 * 144, 5)).eval()


@pytest.mark.parametrize("precision", ["auto", "float32", "bf16"])
def test_another_dtype_and_back(precision: str) -> None:
    model = network()
    explainer = Explainer(model, "epsilon_plus", precision=precision)
    expected = explainer(X, [0, 3])
    parameters = [*model.parameters()]
    if precision == "bf16":
        model.double().float()
    else:
        model.double()
        wide = fastlrp.explain(copy.deepcopy(model), X.double(), [0, 3], "epsilon_plus")
        assert torch.equal(Explainer(model, "epsilon_plus")(X.double(), [0, 3]), wide)
        model.float()
    assert all(old is new for old, new in zip(parameters, model.parameters(), strict=True)), "they were swapped"
    assert torch.equal(explainer(X, [0, 3]), expected)


def test_a_swapped_weight_is_noticed() -> None:
    model = network()
    explainer = Explainer(model, "epsilon_plus")
    before = explainer(X, 0)
    for parameter in (model[0].weight, model[3].weight, model[8].bias):
        torch.utils.swap_tensors(parameter, nn.Parameter(parameter.detach() * 1.5))
        found = explainer(X, 0)
        assert torch.equal(found, fastlrp.explain(copy.deepcopy(model), X, 0, "epsilon_plus"))
        assert not torch.equal(found, before)
        before = found


class Sized(nn.Module):
    """Captured for one batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.view(2, 12)).view(2, -1)


def test_models_that_hold_on_to_one_batch_size() -> None:
    torch.manual_seed(0)
    model, x = Sized().eval(), torch.randn(2, 3, 4)
    fastlrp.explain(model, x, 0)
    model.double()
    assert fastlrp.explain(model, x.double(), 0).dtype == torch.float64


def test_captum_s_interface() -> None:
    model = network()
    model[1] = nn.Identity()  # Which Captum has a rule for.
    captum.LRP(model).attribute(X, target=0)
    model.double()
    assert captum.LRP(model).attribute(X.double(), target=0).dtype == torch.float64
