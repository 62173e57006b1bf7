"""A look at the numbers under products of bfloat16: filtered in float32 where they are even, bfloat16 elsewhere."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv_transpose2d

import fastlrp
from fastlrp import composites, rules
from fastlrp.plan.geometry import ConvGeometry
from fastlrp.plan.products import looked, looked_narrow, packed, winograd
from fastlrp.plan.products.layouts import Layouts
from fastlrp.precision import instruction_set
from tests.plan.looked_cases import Residual
from tests.reference.cases import relative_error

pytestmark = [
    pytest.mark.skipif(
        packed._operations() is None or winograd._kernel() is None, reason="no processor or PyTorch that gains by it"
    ),
    pytest.mark.skipif(instruction_set() == "AMX", reason="products of bfloat16 are faster"),
    pytest.mark.filterwarnings("ignore:precision. bf16 as asked for"),
]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Layers of 32 channels and small maps go so."""
    monkeypatch.setattr(looked_narrow, "LEAST_CHANNELS", 32)
    monkeypatch.setattr(looked_narrow, "LEAST_TILES", 9)


SIZE = 12
GEOMETRY = ConvGeometry([1, 1], [1, 1], [1, 1], False, [0, 0], 1)


def down(weight: Tensor) -> Any:
    return Layouts("conv", GEOMETRY, (3, 3), (SIZE, SIZE), (SIZE, SIZE)).looked(weight, True)


class Case:
    """Transposes of weights, filtered or exact, with three samples and two targets.

    One target of the first sample is uneven; of the second too little is left beside its tile.
    """

    def __init__(self, first: str, signed: bool) -> None:
        torch.manual_seed(0)
        self.first, self.signed = first, signed
        last = {"memory_format": torch.channels_last}
        self.weight, other = (torch.randn(32, 32, 3, 3).contiguous(**last) for _ in range(2))
        self.parts = [w.clamp(min=0) for w in (self.weight, other)]
        self.opposites = [w.clamp(max=0) for w in (self.weight, other)]
        self.flow = torch.rand(3, 2, 32, SIZE, SIZE)
        self.flow[0, 1, ..., 5:] *= 1e-6
        self.u, self.v = torch.rand(2, 3, 32, SIZE, SIZE)
        self.x: Any = torch.randn(3, 32, SIZE, SIZE) if signed else False
        self.times = torch.rand(3, 32, SIZE, SIZE)
        sent = self.exact(self.flow)[1].abs().amax(0)
        self.times[1] = (sent <= 0.02 * sent.mean()).float() + 1e-9
        self.heard = 0

    def call(self, flow: Tensor, times: Tensor | None = None) -> Tensor:
        below = [down(w) for w in self.opposites] if self.signed else [None, None]
        if self.first == "both":
            call = looked_narrow.transposed_of_both(down, self.parts, below, self.narrow)
        else:
            call = looked_narrow.transposed(down, self.weight, self.parts[0], below[0], self.narrow)
        return call(flow, *self.coefficients(), times)

    def coefficients(self) -> list[Any]:
        if self.first == "both":
            return [[self.u, self.v], self.x]
        return [self.u if "u" in self.first else None, self.v if "v" in self.first else None, self.x]

    def exact(self, flow: Tensor, *given: Any) -> Tensor:
        *coefficients, x = given or self.coefficients()
        coefficients = coefficients[0] if self.first == "both" else coefficients

        def product(coefficient: Tensor, weight: Tensor) -> Tensor:
            rows = (flow * coefficient.unsqueeze(1)).flatten(0, 1).double()
            return conv_transpose2d(rows, weight.double(), padding=1).view(flow.shape)

        def by_sign(coefficient: Tensor, above: Tensor, below: Tensor) -> Tensor:
            if x is False:
                return product(coefficient, above)
            both = product(coefficient, above), product(coefficient, below)
            sign = x.unsqueeze(1)
            return torch.where(sign > 0, both[0], torch.where(sign < 0, both[1], 0.0))

        if self.first == "both":
            return sum(map(by_sign, coefficients, self.parts, self.opposites))  # type: ignore[return-value]
        u, v = coefficients
        total = 0 if u is None else product(u, self.weight)
        return total if v is None else total + by_sign(v, self.parts[0], self.opposites[0])  # type: ignore[return-value]

    def narrow(self, flow: Tensor, *given: Any) -> Tensor:
        self.heard += flow.shape[0] * flow.shape[1]
        return self.exact(flow, *given).bfloat16()


@pytest.mark.parametrize(("first", "signed"), [("u", False), ("v", False), ("uv", False), ("v", True), ("uv", True),
                                               ("both", False), ("both", True)])  # fmt: skip
def test_each_sample_and_target_goes_its_own_way(first, signed, monkeypatch):
    case = Case(first, signed)
    right, found = case.exact(case.flow), case.call(case.flow, case.times)
    filtered = torch.tensor([[True, False], [first != "u"] * 2, [True, True]])
    assert case.heard == int((~filtered).sum())
    assert found.dtype == torch.float32
    assert relative_error(found[filtered].double(), right[filtered]) <= 2e-6  # Measured: 1e-6.
    assert torch.equal(found[~filtered], right[~filtered].bfloat16().float())
    narrow = case.flow.bfloat16()
    assert torch.equal(case.call(narrow, case.times), case.call(narrow.float(), case.times))
    heard = case.heard
    case.flow[0, 1] = case.flow[0, 0]
    assert relative_error(case.call(case.flow).double(), case.exact(case.flow)) <= 2e-6
    assert case.heard == heard, "all are even"
    uneven = case.flow * 10 ** -torch.arange(float(SIZE))
    assert torch.equal(case.call(uneven), case.exact(uneven).bfloat16()), "none is: as products of bfloat16 give it"
    monkeypatch.setattr(looked, "MOST_NOISE", 0.0)
    assert torch.equal(case.call(case.flow, case.times), case.exact(case.flow).bfloat16()), "too little relevance"


def explained(model: nn.Module, composite: Any, x: Tensor, precision: str, targets: Any = 0) -> Tensor:
    return fastlrp.Explainer(copy.deepcopy(model), composite, paths="dense", precision=precision)(x, targets)


@pytest.mark.parametrize("composite", ["epsilon_plus", "epsilon_alpha2_beta1", "gamma"])
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.LeakyReLU(0.1), nn.SiLU()], ids=str)
def test_where_all_is_even_numbers_are_those_without_bfloat16(activation, composite):
    model, x = Residual(activation).eval(), torch.randn(2, 32, 16, 16)
    given = model, composite, x
    found, right = explained(*given, "bf16", range(3)), explained(*given, "auto", range(3))
    if composite == "epsilon_alpha2_beta1" and isinstance(activation, nn.ReLU):
        # In float32 both products of a layer are one there, with another order of sums. Measured: 6.5e-8.
        assert 0 < relative_error(found, right) <= 2e-7
    else:
        assert torch.equal(found, right)


def test_small_layers_go_down_by_products_of_bfloat16(monkeypatch):
    model, x = Residual(nn.ReLU()).eval(), torch.randn(2, 32, 16, 16)
    right, before = explained(model, "epsilon_alpha2_beta1", x, "auto"), []
    for channels, tiles in ((32, 16), (33, 16), (32, 17)):
        monkeypatch.setattr(looked_narrow, "LEAST_CHANNELS", channels)
        monkeypatch.setattr(looked_narrow, "LEAST_TILES", tiles)
        before.append(float(relative_error(explained(model, "epsilon_alpha2_beta1", x, "bf16"), right)))
    assert before[0] <= 2e-7  # Another order of sums alone, measured: 6.5e-8.
    assert all(1e-5 < error <= 1e-3 for error in before[1:]), before  # Measured: 1.5e-4.


def test_dark_pictures_take_products_of_bfloat16_beside_even_ones():
    torch.manual_seed(2)
    model = nn.Sequential(
        nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 3),
    ).eval()  # fmt: skip
    nn.init.constant_(model[1].bias, 0.0)
    nn.init.constant_(model[3].bias, 0.7)
    decay = torch.tensor([1.5, 10.0]).view(2, 1, 1, 1)
    x, composite = torch.rand(2, 32, 24, 24) * decay ** -torch.arange(24.0), composites.uniform(rules.AlphaBeta(2, 1))
    right = explained(model.double(), composite, x.double(), "float32")
    found = explained(model.float(), composite, x, "bf16")
    errors = [float(relative_error(one.double(), exact)) for one, exact in zip(found, right, strict=True)]
    assert errors[0] <= 2e-6  # Measured: 7e-7.
    assert 1e-4 < errors[1] <= 5e-3  # Measured: 2.3e-3.
    alone = explained(model, composite, x[:1], "bf16")
    assert relative_error(found[:1], alone) <= 1e-6, "the products of the last layer have other sizes"


@pytest.mark.parametrize(
    "rule", [rules.AlphaBeta(2, 1), rules.AlphaBeta(1, 0), rules.ZPlus(), rules.Gamma(0.5)], ids=str
)
def test_the_models_own_output_is_the_same(rule):
    model, x, composite = Residual(nn.ReLU()).eval(), torch.rand(1, 32, 24, 24), composites.uniform(rule)
    outputs = [fastlrp.Explainer(model, composite, precision=name).forward(x).output for name in ("bf16", "auto")]
    assert torch.equal(*outputs)
    assert not torch.equal(outputs[0], fastlrp.Explainer(model, composite, precision="float32").forward(x).output)


def test_sums_that_others_are_taken_from_are_of_float32(monkeypatch):
    """Below a rule that sends relevance itself there is no look at the sums. Next to nothing lowers some outputs."""
    torch.manual_seed(1)
    below, above = (nn.Conv2d(32, 32, 3, padding=1) for _ in range(2))
    below.weight.data[::2] = torch.where(below.weight[::2] < 0, 0.2, 1) * below.weight[::2]
    layers = nn.ReLU(), below, above, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 3)
    model, x = nn.Sequential(*layers).eval(), torch.rand(1, 32, 24, 24)
    composite = composites.uniform(rules.AlphaBeta(2, 1)).with_entries(("2", rules.WSquare()))
    right = explained(model.double(), composite, x.double(), "float32")
    found = explained(model.float(), composite, x, "bf16").double()
    assert relative_error(found, right) <= 5e-6  # Measured: 1.2e-6, and 8e-4 with sums of bfloat16.
