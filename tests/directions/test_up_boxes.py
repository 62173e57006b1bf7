"""Patches go up in boxes that grow with the receptive field: the same numbers as on whole maps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import fastlrp
from fastlrp import composites, groups
from fastlrp.plan.compact import Compact
from fastlrp.run.group_answers import GroupAnswers
from fastlrp.run.names import input_values
from fastlrp.run.up import way_up
from fastlrp.run.up.boxes import Box, fitted
from fastlrp.run.up.grouped import resolved_groups
from fastlrp.run.up.middle import edges
from fastlrp.run.up.way_up import WayUp, boxes_of

BOUND = 1e-13
"""Relative to the largest number; worst measured: 2e-15."""


class Residual(nn.Module):
    """Branches of different reach that meet, and an average pool beside a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.second, self.third = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 5, padding=2)
        self.pool, self.head = nn.AvgPool2d(3, 2, 1), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        x = (x + self.second(x) + self.third(x).relu()).relu()
        return self.head(self.pool(x).relu().mean((2, 3)))


def plain(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.LazyLinear(5))


CASES = {
    "residual": Residual,
    "strides": lambda: plain(nn.Conv2d(2, 4, 5, 3, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 1, 1), nn.ReLU()),
    "a stride above the kernel": lambda: plain(nn.Conv2d(2, 4, 2, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU()),
    "dilation and channel groups": lambda: plain(
        nn.Conv2d(2, 4, 3, padding=2, dilation=2), nn.ReLU(), nn.Conv2d(4, 4, (3, 1), padding=(1, 0), groups=2),
        nn.ReLU(),
    ),
    "a max-pool with overlap": lambda: plain(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, 1, ceil_mode=True), nn.Conv2d(4, 4, 3), nn.ReLU()
    ),
    "max-pools": lambda: plain(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2),
    ),
}  # fmt: skip


OTHERS = ("epsilon_gamma_box", "alpha_beta", "gamma")


@pytest.mark.parametrize(
    ("composite", "name"),
    [*(("epsilon_plus", n) for n in CASES), *((rules, "a max-pool with overlap") for rules in OTHERS)],
)
def test_boxes_are_whole_maps(composite, name, monkeypatch):
    torch.manual_seed(0)
    x = torch.randn(2, 2, 26, 30, dtype=torch.float64)
    model = CASES[name]().double()
    model(x)
    rules = composites.epsilon_gamma_box(low=-3.0, high=3.0) if composite == "epsilon_gamma_box" else composite
    explainer = fastlrp.Explainer(model.eval(), rules)
    with explainer.forward(x) as record:
        path = WayUp(record.plan, record.asked("all")).path
        patches = way_up_boxes(record, path)
        assert len(patches) >= 2, "layers go up in boxes"
        boxed = record.relevance("all", groups=groups.patches(4), direction="up")
        for _ in range(2):  # The second time with what the record remembers of the steps to the edge.
            middle = record.relevance([0, 3], groups=groups.patches(4), direction="middle")
        monkeypatch.setattr(way_up, "boxes_of", lambda *given: {})
        whole = record.relevance("all", groups=groups.patches(4), direction="up")
        limit = BOUND * float(whole.abs().max())
        torch.testing.assert_close(boxed, whole, rtol=0, atol=limit)
        torch.testing.assert_close(middle, whole[:, [0, 3]], rtol=0, atol=10 * limit)


def way_up_boxes(record, path):
    names = input_values(record.plan, record._inputs)
    return boxes_of(record.plan, path, resolved_groups(record.plan, groups.patches(4), names, record.batch))


def test_contributions_in_boxes(monkeypatch):
    """Labels of each sample's own, one group in pieces far apart, one without entries, and weights."""
    torch.manual_seed(1)
    x = torch.rand(2, 2, 20, 20, dtype=torch.float64)
    model = CASES["max-pools"]().double()
    model(x)
    labels = torch.full((2, 20, 20), -1)
    labels[0, 2:5, 3:6], labels[1, 12:15, 0:4], labels[:, 6, 6], labels[:, 8, 9] = 0, 0, 3, 3
    weights = torch.zeros(3, 2, 20, 20).double()
    weights[0, :, :3, :3], weights[2, 1, 19, 19] = torch.randn(2, 3, 3).double(), 2.0
    with fastlrp.Explainer(model.eval(), "epsilon_plus").forward(x) as record:
        for given in (groups.labels(labels.unsqueeze(1), 5), weights):
            boxed = record.contributions(given, ["0", "2", "3", "5", "8"])
            with monkeypatch.context() as patched:
                patched.setattr(way_up, "boxes_of", lambda *given: {})
                whole = record.contributions(given, ["0", "2", "3", "5", "8"])
            for name in whole:
                torch.testing.assert_close(boxed[name], whole[name], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("axes", [1, 3])
def test_other_numbers_of_axes(axes, monkeypatch):
    torch.manual_seed(0)
    conv, pool = (nn.Conv1d, nn.MaxPool1d) if axes == 1 else (nn.Conv3d, nn.MaxPool3d)
    model = nn.Sequential(
        conv(1, 3, 3, padding=1), nn.ReLU(), pool(2), conv(3, 3, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4)
    )
    x = torch.randn(2, 1, *[10] * axes, dtype=torch.float64)
    model.double()(x)
    with fastlrp.Explainer(model.eval(), "epsilon_plus").forward(x) as record:
        boxed = record.relevance("all", groups=groups.patches(2), direction="up")
        down = record.relevance("all", groups=groups.patches(2), direction="down")
    torch.testing.assert_close(boxed, down, rtol=1e-10, atol=1e-13)


def test_boxes_by_hand():
    """Two groups of different extents: boxes as long as the longest, moved inside the map."""
    found = fitted(torch.tensor([[0, 3], [17, 9]]), torch.tensor([[2, 8], [18, 9]]), (20, 20))
    assert found is not None
    assert found.lengths == (3, 6)
    assert found.starts.tolist() == [[0, 3], [17, 9]]
    assert found.slices(1, 1) == [(..., slice(17, 20), slice(9, 15))]
    assert fitted(torch.tensor([[0, 0]]), torch.tensor([[18, 18]]), (20, 20)) is None
    other = replace(found, starts=torch.tensor([[1, 0], [2, 3]]))
    both = Box.united(found, other)
    assert both is None, "one group reaches from 2 to 19 along an axis, and from 0 to 8: more than half of the map"


@pytest.mark.parametrize("given", [groups.patches(4), groups.features([0, 1])])
def test_the_middle_leaves_out_dead_neurons(given):
    """What waits at the edge are the alive neurons' rows alone, in boxes and on whole maps, of samples of their own."""
    torch.manual_seed(0)
    x = torch.randn(2, 2, 26, 30, dtype=torch.float64)
    model = CASES["max-pools"]().double()
    model(x)
    with fastlrp.Explainer(model.eval(), "epsilon_plus", paths="sparse").forward(x) as record:
        down = record.relevance("all", groups=given, direction="down")
        middle = record.relevance("all", groups=given, direction="middle")
        for targets in ([0, 3], list(range(5)) * 9):
            again = record.relevance(targets, groups=given, direction="middle")
            torch.testing.assert_close(again, down[:, targets], rtol=1e-10, atol=1e-13)
        schedule = record.plan.schedule(record.plan.explained_inputs())
        asked = GroupAnswers(record._answers, record.state(), record.asked("all"), given)
        waiting = [asked._to_edge(edge, 0, 5) for edge in edges(record.plan, schedule.steps)]
        assert sum(isinstance(pieces[0][1], Compact) for pieces in waiting) >= 3
    torch.testing.assert_close(middle, down, rtol=1e-10, atol=1e-13)
