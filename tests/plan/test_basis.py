"""Basis propagation equals the direct way, is taken only where it pays, and skips what is dead."""

import pytest
import torch
from torch import nn

import fastlrp
from fastlrp import composites
from fastlrp.run import basis, runner


def net(classes: int = 96, width: int = 8) -> nn.Module:
    torch.manual_seed(0)
    return (
        nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, width, 3, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, classes),
        )
        .double()
        .eval()
    )  # fmt: skip


def direct(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "neck", lambda *args: None)


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """No size is too small for a basis."""
    monkeypatch.setattr(basis, "_LEAST_WORK", 0)


def neck_of(record: fastlrp.ForwardRecord, count: int) -> basis.Neck | None:
    values = record.plan.explained_inputs()
    return runner.neck(record.plan, record.plan.schedule(values), values, count)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"reduce": "channels"}, {"layers": "all"}, {"layers": ["2", "7"]}])
@pytest.mark.parametrize("batch", [1, 3])
def test_equals_the_direct_way(always, monkeypatch, options, batch):
    x = torch.randn(batch, 3, 8, 8, dtype=torch.float64)
    record = fastlrp.Explainer(net(), "epsilon_plus").forward(x)
    assert neck_of(record, 96) is not None
    found = record.relevance("all", **options)
    direct(monkeypatch)
    expected = record.relevance("all", **options)
    names = expected if isinstance(expected, dict) else {"input": expected}
    for name in names:
        ours, theirs = (found[name], expected[name]) if isinstance(expected, dict) else (found, expected)
        assert ours.shape == theirs.shape
        # Measured: 4e-16.
        assert float((ours - theirs).norm() / theirs.norm()) <= 1e-13, name


def test_the_neck_is_the_narrow_edge_and_needs_more_targets_than_it_is_wide(always):
    record = fastlrp.Explainer(net(width=8), "epsilon_plus").forward(torch.randn(1, 3, 8, 8, dtype=torch.float64))
    neck = neck_of(record, 96)
    assert neck is not None
    assert neck.width == 8
    assert neck_of(record, 8) is None


def test_dead_entries_need_no_vector(always, monkeypatch):
    model = net()
    with torch.no_grad():
        model[2].weight[:6].fill_(-1)
        model[2].bias[:6].fill_(-1e3)  # Six of eight features never fire.
    record = fastlrp.Explainer(model, "epsilon_plus").forward(torch.rand(1, 3, 8, 8, dtype=torch.float64))
    seen = []
    run = basis.Descent.descend

    def spy(self, steps, start, registers, first, count):
        seen.append((start, count))
        return run(self, steps, start, registers, first, count)

    monkeypatch.setattr(basis.Descent, "descend", spy)
    found = record.relevance("all")
    below = [count for start, count in seen[1:] if start == 0]  # The first goes to the neck.
    assert below
    assert sum(below) <= 2
    direct(monkeypatch)
    assert torch.allclose(found, record.relevance("all"), rtol=1e-10, atol=1e-14)


def test_rules_that_clip_relevance_have_no_basis(always):
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    record = fastlrp.Explainer(net(), composites.guided_backprop()).forward(x)
    assert neck_of(record, 96) is None


def test_writes_into_the_callers_array(always):
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    record = fastlrp.Explainer(net(), "epsilon_plus").forward(x)
    out = torch.full((2, 96, 3, 8, 8), float("nan"), dtype=torch.float32)
    assert record.relevance("all", out=out) is out
    assert torch.allclose(out.double(), record.relevance("all"), rtol=1e-5, atol=1e-9)
