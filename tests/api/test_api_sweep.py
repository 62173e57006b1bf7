"""One forward pass under several composites: equal to a forward pass of its own, and without the work of one."""

from __future__ import annotations

import pytest
import torch

from fastlrp import Explainer, composites
from tests.api.models import make, relative_error, same, samples

TIGHT = 1e-13
SWEEP = {
    "epsilon": [composites.epsilon(value) for value in (1e-6, 0.01, 0.25)],
    "alpha": [composites.alpha_beta(value, value - 1) for value in (1.0, 2.0, 0.5)],
    "gamma": [composites.gamma(value) for value in (0.0, 0.25, 10.0)],
    "presets": [composites.epsilon_plus(), composites.wsquare(), composites.flat(), composites.gradient()],
}


@pytest.mark.each_value
@pytest.mark.slow
@pytest.mark.usefixtures("captured_once")
@pytest.mark.parametrize("lrp_aware", [True, False, "sweep"])
@pytest.mark.parametrize("name", ["convnet", "residual", "mlp"])
def test_each_is_what_its_own_forward_pass_gives(name, lrp_aware):
    model, x = same(name), samples(name)
    explainer = Explainer(model, "epsilon_plus")
    with explainer.forward(x, lrp_aware) as record:
        for others in SWEEP.values():
            for composite in others:
                expected = Explainer(model, composite)(x, "all")
                with record.under(composite) as other:
                    assert relative_error(other.relevance("all"), expected) <= TIGHT, composite.name
                    assert torch.equal(other.output, record.output)
        assert relative_error(record.relevance("all"), Explainer(model, "epsilon_plus")(x, "all")) <= TIGHT
        by_name = record.under("zplus").relevance([0, 2])
        assert relative_error(by_name, Explainer(model, "zplus")(x, [0, 2])) <= TIGHT


@pytest.mark.parametrize("family", ["epsilon", "alpha"])
def test_a_sweep_runs_no_layer_again(family, monkeypatch):
    """After the first of a family, only element-wise coefficients are left to compute."""
    model, x = make("convnet"), samples("convnet")
    explainer = Explainer(model, SWEEP[family][1])
    with explainer.forward(x, lrp_aware="sweep") as record:
        record.relevance("all")
        calls = []
        monkeypatch.setattr(torch, "convolution", lambda *args: calls.append(args))
        monkeypatch.setattr(torch.nn.functional, "linear", lambda *args: calls.append(args))
        plans = [record.under(composite) for composite in SWEEP[family]]
        assert calls == []
        assert [plan.plan.composite for plan in plans] == SWEEP[family]


def test_plans_of_a_sweep_are_made_once_and_share_weights(counts):
    model, x = make("convnet"), samples("convnet")
    explainer = Explainer(model, "epsilon_plus")
    for _ in range(3):
        with explainer.forward(x) as record:
            for composite in SWEEP["epsilon"]:
                record.under(composite).relevance(0)
    assert (counts.captured, counts.prepared) == (1, 4)
    before = explainer(x, 0)
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)
    with explainer.forward(x) as record:
        found = record.under(SWEEP["epsilon"][1]).relevance(0)
    assert relative_error(found, Explainer(model, SWEEP["epsilon"][1])(x, 0)) <= TIGHT
    assert relative_error(explainer(x, 0), before) > 1e-3


def test_a_stale_or_closed_record_has_no_other_views():
    model, x = make("convnet"), samples("convnet")
    explainer = Explainer(model, "epsilon_plus")
    record = explainer.forward(x)
    other = record.under("epsilon")
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)
    with pytest.raises(RuntimeError, match="weights have changed"):
        record.under("zplus")
    with pytest.raises(RuntimeError, match="weights have changed"):
        other.relevance(0)
    record.close()
    with pytest.raises(RuntimeError, match="closed"):
        record.under("zplus")
    with pytest.raises(ValueError, match="lrp_aware must be True, False or 'sweep', got 'all'"):
        explainer.forward(x, lrp_aware="all")
