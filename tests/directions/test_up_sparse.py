"""Alive neurons only on the way up: the same numbers as with the library's products."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fastlrp
from fastlrp import composites, groups, rules
from fastlrp.plan.compact import Compact
from fastlrp.plan.forms import Affine
from fastlrp.run import runner
from fastlrp.run.sparse import upward
from fastlrp.run.up.way_up import WayUp

LARGEST = 1e-12
"""As for all steps' transposes (tests/directions/adjoint.py)."""

CONVOLUTIONS = {
    "plain": lambda: nn.Conv2d(6, 5, 3, padding=1), "strided": lambda: nn.Conv2d(6, 5, 3, 2, 1),
    "1d": lambda: nn.Conv1d(6, 4, 3, 2, 1), "3d": lambda: nn.Conv3d(6, 3, 2, (1, 2, 1), (0, 1, 1)),
    "groups": lambda: nn.Conv2d(6, 8, 3, 2, 1, groups=2), "depthwise": lambda: nn.Conv2d(6, 6, 3, groups=6, bias=False),
    "dilated": lambda: nn.Conv2d(6, 4, (3, 2), 1, 2, (2, 3)), "wide padding": lambda: nn.Conv2d(6, 4, 2, 3, 5),
    "stride over the kernel": lambda: nn.Conv2d(6, 4, 1, 3), "many channels": lambda: nn.Conv2d(6, 150, 3),
    "transposed": lambda: nn.ConvTranspose2d(6, 4, 3, 2, 1, 1),
    "transposed far": lambda: nn.ConvTranspose2d(6, 2, 2, 3, 1, 2, 2),
}  # fmt: skip


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_step_is_the_transpose_of_the_way_down(name):
    """<down(c), t> = <c, up(t)> of cotangents that are zero where the layer below is dead, for each rule."""
    torch.manual_seed(0)
    layer = CONVOLUTIONS[name]()
    axes = len(layer.kernel_size)
    first = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1](2, 6, 1)
    model = nn.Sequential(first, nn.ReLU(), layer, nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)).double()
    x = torch.randn(2, 2, *(7, 6, 5)[-axes:], dtype=torch.float64)
    model(x)
    base = fastlrp.Explainer(model.eval(), "gradient", paths="sparse").forward(x)
    for rule in (rules.Epsilon(1e-3), rules.ZPlus(), rules.Gamma(0.25), rules.AlphaBeta(2, 1)):
        record = base.under(composites.epsilon().with_entries((composites.kind("conv"), rule)))
        path = WayUp(record.plan, record.asked("all")).path
        with torch.no_grad():
            state = runner.complete(record.plan, record.state(), path.slots)
            found = upward.planned(path.steps, state, {}, lambda *_: True, 5, 8, None).steps
            steps = [step for step in found if isinstance(step.form, Affine) and step.node.path == "2"]
            assert steps
            for step in steps:
                up = found[step]
                t = torch.randn(2, 5, *step.form.leaving, dtype=torch.float64)
                t = t * Compact(t.new_ones(up.below.entries, 16), up.below, 1).dense()
                c = torch.randn(2, 5, *step.form.arriving, dtype=torch.float64)
                slots = [state[slot] for slot in step.slots]
                left, right = step.run(c, *slots) * t, c * up(t).dense()
                error = (left.flatten(1).sum(1) - right.flatten(1).sum(1)).abs() / left.abs().flatten(1).sum(1)
                assert float(error.max()) < LARGEST, rule
                torch.testing.assert_close(up(t).dense(), step.up(t, *slots), rtol=1e-11, atol=1e-13)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.third, self.pool = nn.Conv2d(6, 7, 3), nn.MaxPool2d(3, 2, 1)
        self.fourth, self.head = nn.Conv2d(7, 8, 3), nn.LazyLinear(5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        x = (x + self.second(x).relu()).relu()
        return self.head(self.fourth(self.pool(self.third(x).relu())).relu().flatten(1))


@pytest.mark.parametrize("given", [groups.patches(4), torch.rand(11, 2, 12, 12).double()])
def test_whole_models(given):
    torch.manual_seed(0)
    x = torch.randn(2, 2, 12, 12, dtype=torch.float64)
    model = Residual().double()
    model(x)
    dense = fastlrp.Explainer(model.eval(), "epsilon_plus", paths="dense")
    sparse = fastlrp.Explainer(model, "epsilon_plus", paths={"third": "sparse", "fourth": "sparse", "*": "auto"})
    with dense.forward(x) as plain, sparse.forward(x) as record:
        expected = plain.relevance("all", groups=given, direction="up")
        found = record.relevance("all", groups=given, direction="up")
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)
        both = [r.contributions(given, ["third", "pool", "fourth"]) for r in (plain, record)]
        for name in both[0]:
            torch.testing.assert_close(both[1][name], both[0][name], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("composite", ["epsilon_plus", "gamma", "epsilon_alpha2_beta1"])
def test_linear_layers_below_which_maps_are_flattened(composite):
    """Dead neurons are known through a flattened map; the weight is read as it lies there, without a copy."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(54, 300), nn.ReLU(),
        nn.Linear(300, 9, bias=False), nn.ReLU(), nn.Linear(9, 5),
    ).double().eval()  # fmt: skip
    x, given = torch.randn(2, 2, 8, 8, dtype=torch.float64), torch.rand(40, 2, 8, 8, dtype=torch.float64)
    with fastlrp.Explainer(model, composite, paths="dense").forward(x) as plain:
        expected = plain.relevance("all", groups=given, direction="up")
    with fastlrp.Explainer(model, composite, paths={"4": "sparse", "6": "sparse", "*": "dense"}).forward(x) as record:
        torch.testing.assert_close(
            record.relevance("all", groups=given, direction="up"), expected, rtol=1e-11, atol=1e-13
        )
        asked = record.asked("all")
        ascent = WayUp(record.plan, asked).prepared(record.state(), record._of_groups(asked, given, "up").resolved, 2)
        steps = {step.node.path: sparse for step, sparse in ascent.alive.items()}
        assert set(steps) == {"4", "6"}
        assert steps["4"].below.density < 0.9
        own = {w.data_ptr() for w in (model[4].weight, model[6].weight)}
        if composite != "epsilon_alpha2_beta1":  # Whose positive weights are made for it.
            read = {w.data_ptr() for step in ascent.alive for w in upward._packed(step.form)}
            assert read <= own or composite == "gamma"


def test_pools_rename_rows_and_boxes_end_where_alive_neurons_cost_less():
    torch.manual_seed(0)
    x = torch.rand(1, 3, 32, 32)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1024, 9),
    ).eval()  # fmt: skip
    with fastlrp.Explainer(model, "epsilon_plus", paths={"6": "sparse", "*": "dense"}).forward(x) as record:
        asked = record.asked("all")
        way = WayUp(record.plan, asked)
        answers = record._of_groups(asked, groups.patches(8), "up")
        ascent = way.prepared(record.state(), answers.resolved, 1)
        names = [step.name for step in ascent.alive]
        assert names == ["6 (conv2d, ZPlus)", "8 (max_pool2d, max: winner)"]
        assert not any(register in ascent.boxes for step in ascent.alive for register in step.ins)
        assert ascent.boxes
