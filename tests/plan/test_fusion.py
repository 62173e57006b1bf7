"""Steps that one kernel does together: what the plan makes of them, with composed PyTorch in the kernels' place."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastlrp
from fastlrp import composites
from fastlrp.plan import input_terms, lower
from fastlrp.plan.products import fused as fused_kernels
from fastlrp.run import runner


@pytest.fixture
def fused(monkeypatch):
    """The torch backend taken for one that fuses."""
    for module in (fused_kernels, input_terms, lower):
        monkeypatch.setattr(module, "FUSED", ("torch",))


def vgg(pool: nn.Module | None = None, bias: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=bias), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1, bias=bias), nn.ReLU(),
        pool or nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1, bias=bias), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(8 * 9, 5),
    ).double().eval()  # fmt: skip


def image(*size: int) -> torch.Tensor:
    return torch.randn(*(size or (2, 3, 12, 12)), dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def explainers(net: nn.Module, composite, monkeypatch) -> tuple[fastlrp.Explainer, fastlrp.Explainer]:
    """One that fuses and one that does not; each has captured the model."""
    together = fastlrp.Explainer(net, composite, backend="torch", example_inputs=image())
    with monkeypatch.context() as m:
        for module in (fused_kernels, input_terms, lower):
            m.setattr(module, "FUSED", ())
        apart = fastlrp.Explainer(net, composite, backend="torch", example_inputs=image())
        apart(image(), 0)
    return together, apart


COMPOSITES = [
    composites.preset("epsilon_plus"), composites.preset("epsilon_gamma_box", low=-3.0, high=3.0),
    composites.preset("epsilon_alpha2_beta1"), composites.preset("epsilon_plus_flat"), composites.preset("gamma"),
    composites.preset("wsquare"), composites.preset("gradient"), composites.preset("lrp0"),
]  # fmt: skip


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("reduce", [None, "channels"])
@pytest.mark.parametrize("composite", COMPOSITES, ids=lambda c: c.name)
def test_fused_steps_change_no_number(composite, reduce, monkeypatch):
    together, apart = explainers(vgg(), composite, monkeypatch)
    found = together(image(), [0, 1, 4], reduce=reduce)
    with monkeypatch.context() as m:
        m.setattr(lower, "FUSED", ())
        expected = apart(image(), [0, 1, 4], reduce=reduce)
    assert found.shape == expected.shape
    assert (found - expected).norm() <= 1e-12 * expected.norm()


def steps_of(explainer: fastlrp.Explainer, reduce: str | None = None):
    record = explainer.forward(image())
    record.relevance([0, 1], reduce=reduce)
    values = record.plan.explained_inputs()
    schedule = record.plan.schedule(values, reduce == "channels")
    return [step for step, _ in runner.specialize(record.plan, schedule.steps, record._state, 2, 2).steps]


@pytest.mark.usefixtures("fused")
def test_a_pool_goes_into_the_convolution_below_it(monkeypatch):
    together, apart = explainers(vgg(), "epsilon_plus", monkeypatch)
    # Both pools have a convolution below; three convolutions, the linear layer and the emission are left.
    assert len(steps_of(apart)) - len(steps_of(together)) == 2


@pytest.mark.usefixtures("fused")
def test_windows_that_overlap_stay_a_step_of_their_own(monkeypatch):
    together, apart = explainers(vgg(nn.MaxPool2d(3, 2, 1)), "epsilon_plus", monkeypatch)
    assert len(steps_of(apart)) - len(steps_of(together)) == 1
    expected, found = apart(image(), [0, 2]), together(image(), [0, 2])
    assert (found - expected).norm() <= 1e-12 * expected.norm()


@pytest.mark.usefixtures("fused")
def test_what_is_asked_for_in_between_is_still_there():
    net = vgg()
    layers = ["1", "3", "4"]
    together = fastlrp.Explainer(net, "epsilon_plus", backend="torch")
    found = together(image(), [0, 2], layers=layers)
    expected = fastlrp.Explainer(net, "epsilon_plus", backend="reference")(image(), [0, 2], layers=layers)
    assert set(found) == set(expected)
    for name, relevance in expected.items():
        assert (found[name] - relevance).norm() <= 1e-12 * relevance.norm(), name


@pytest.mark.usefixtures("fused")
def test_the_channel_sum_of_the_input_is_made_by_its_kernel():
    explainer = fastlrp.Explainer(vgg(), COMPOSITES[1], backend="torch")
    full, reduced = steps_of(explainer), steps_of(explainer, "channels")
    record = explainer.forward(image())
    assert full[-2].run is not reduced[-2].run
    assert reduced[-2].run is full[-2].reduced
    assert torch.allclose(record.relevance([0], reduce="channels"), record.relevance([0]).sum(2))


@pytest.mark.usefixtures("fused")
def test_one_sweep_makes_pool_winner_and_coefficients():
    explainer = fastlrp.Explainer(vgg(), "epsilon_plus", backend="torch")
    record = explainer.forward(image())
    steps = [step for step, _ in record.plan.forward_schedule().steps]
    assert sum(len(step.outs) == 4 for step in steps) == 2
    kinds = [step.part.kind for step in steps if step.part is not None]
    assert kinds.count("pool") == 0
    assert kinds.count("relu") == 1, "only the ReLU that no pool follows is left"
    assert torch.equal(record.output, vgg()(image()))


@pytest.mark.usefixtures("fused")
def test_a_relu_that_others_read_too_is_not_swept():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.last = nn.Conv2d(3, 4, 3), nn.Linear(4 * 25 + 4 * 100, 3)

        def forward(self, x):
            x = torch.relu(self.conv(x))
            return self.last(torch.cat([nn.functional.max_pool2d(x, 2).flatten(1), x.flatten(1)], 1))

    torch.manual_seed(0)
    net = Both().double().eval()
    explainer = fastlrp.Explainer(net, "epsilon_plus", backend="torch")
    record = explainer.forward(image())
    steps = [step for step, _ in record.plan.forward_schedule().steps]
    assert not any(len(step.outs) == 4 for step in steps)
    expected = fastlrp.Explainer(net, "epsilon_plus", backend="reference")(image(), [0, 1])
    assert (record.relevance([0, 1]) - expected).norm() <= 1e-12 * expected.norm()


@pytest.mark.slow
@pytest.mark.usefixtures("fused")
def test_other_rules_on_the_same_forward_pass():
    net = vgg()
    explainer = fastlrp.Explainer(net, "epsilon_plus", backend="torch")
    for lrp_aware in (True, False, "sweep"):
        other = explainer.forward(image(), lrp_aware=lrp_aware).under("epsilon_alpha2_beta1").relevance([0, 1])
        expected = fastlrp.Explainer(net, "epsilon_alpha2_beta1", backend="reference")(image(), [0, 1])
        assert (other - expected).norm() <= 1e-12 * expected.norm()
