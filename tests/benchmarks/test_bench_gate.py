"""Everybody's float32 is compared with float64, not with one another: a wrong output is not timed, whoever's it is."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from benchmarks import attention_models, compare, gates, measure, providers
from benchmarks.attention_models import Workload
from benchmarks.measure import Gate
from benchmarks.rounds import Options


def test_whoever_is_further_from_float64_than_a_pools_winner_is_not_timed():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5)).eval()
    x, classes = torch.rand(3, 3, 8, 8), torch.tensor([[0], [3], [1]])
    gate = gates.in_double(model, x, "epsilon_plus", classes)
    assert gate.expected is not None
    assert gate.expected.dtype == torch.float64
    assert next(model.parameters()).dtype == torch.float32, "the model that is timed is the one that was given"
    right = providers.ours(model, x, "epsilon_plus", "auto")
    (found,) = measure.measure([right], x, classes, 1, gate)
    assert found.reason is None
    assert found.error is not None
    assert found.error < 1e-5

    def off(x: torch.Tensor, classes: torch.Tensor, mark: object) -> torch.Tensor:
        result = right.run(x, classes, lambda: None).clone()
        result[1] *= 1 + 2 * gates.WINNERS  # One image of three.
        return result

    (found,) = measure.measure([providers.Provider("zennit off", off)], x, classes, 1, Gate(gate.expected, 5e-4, 5e-4))
    assert found.reason is not None
    assert "differs" in found.reason


WRONG = {
    "scaled": lambda found: found * 1.5,
    "last target": lambda found: torch.cat([found[:, :-1], found[:, -1:] * 1.5], 1),
    "nothing": lambda found: found * 0,
    "not a number": lambda found: found * float("nan"),
}


CASES = [
    ("targets", "scaled"), ("targets", "last target"), ("stream", "scaled"), ("stream", "last target"),
    ("batch", "nothing"), ("small", "not a number"), ("transformers", "scaled"), ("transformers", "last target"),
]  # fmt: skip


def tiny():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 10)).eval()
    return Workload("tiny", model, torch.rand(1, 3, 2, 2), 10, "attnlrp", "vit")


@pytest.mark.parametrize(("scenario", "how"), CASES)
def test_fastlrps_own_wrong_output_is_not_timed(monkeypatch, capsys, scenario, how):
    """With nobody beside it, and as the first one of all. Targets asked alone are right: a kernel for many is wrong."""
    several = how == "last target"

    def spoiled(part):
        def run(x, classes, mark):
            found = part.run(x, classes, mark)
            return found if several and classes.shape[1] <= measure.COMPARED else WRONG[how](found)

        return replace(part, run=run)

    def spoiling(make):
        def made(*given, **more):
            part = make(*given, **more)
            if isinstance(part, tuple):  # With the graph, of a transformer.
                return (part[0] if more else spoiled(part[0]), *part[1:])
            return spoiled(part) if given[3] == "cpu" else part

        return made

    for name in ("ours", "streaming", "of_transformer"):
        monkeypatch.setattr(providers, name, spoiling(getattr(providers, name)))
    monkeypatch.setattr(attention_models, "build", lambda name: tiny())
    is_image = scenario != "transformers"
    options = Options(
        models=("small" if is_image else "tiny",), composites=("epsilon_plus" if is_image else "attnlrp",), targets=8,
        counts=(8,), backends=("cpu", "torch"), others=(), repeats=1,
    )  # fmt: skip
    wrong, *others = compare.run(scenario, options, "")
    assert (wrong["provider"], wrong["samples"]) == ("fastlrp cpu" if is_image else "fastlrp auto", 0)
    assert "differ" in wrong["reason"]
    assert f"{wrong['provider']:18} not timed" in capsys.readouterr().out
    if is_image:
        assert others[0]["samples"] == 1
        assert others[0]["error"] < 1e-5  # Measured: 3e-7.
