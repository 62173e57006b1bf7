"""Up equals down summed over the groups, for whole models, in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import fastlrp
from fastlrp import composites, groups
from tests.directions.adjoint import LARGEST, errors_of_steps
from tests.directions.models import CASES, SLOW

BOUND = 1e-11
"""Relative to the largest group's relevance; worst measured: 2e-13."""


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in CASES])
def test_up_equals_down(name):
    torch.manual_seed(0)
    case = CASES[name]()
    model = case.model.double().eval()
    for composite in case.composites:
        explainer = fastlrp.Explainer(model, composite, **({"output": "logits"} if isinstance(case.x, dict) else {}))
        with explainer.forward(case.x) as record:
            up, down = (record.relevance(**case.arguments, groups=case.groups, direction=way) for way in ("up", "down"))
            assert record.direction is not None
            assert record.direction.direction == "down"
            assert up.shape == down.shape
            assert difference(up, down) < case.bound
            found = errors_of_steps(record)
            assert max(found.values()) < max(LARGEST, case.bound / 10 if case.bound > BOUND else 0), found


def test_rules_of_the_first_layer():
    """z-box, w2, flat and alpha-beta, at an input of both signs and at one that is not negative."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)).double().eval()
    for x in (torch.rand(2, 3, 7, 7, dtype=torch.float64), torch.randn(2, 3, 7, 7, dtype=torch.float64)):
        for composite in (composites.epsilon_gamma_box(low=-3.0, high=3.0), "epsilon_plus_flat", "wsquare", "gamma"):
            with fastlrp.Explainer(model, composite).forward(x) as record:
                up, down = (record.relevance("all", groups=groups.patches(2), direction=d) for d in ("up", "down"))
                assert difference(up, down) < BOUND
                assert max(errors_of_steps(record).values()) < LARGEST


@pytest.mark.parametrize("mode", ["winner", "ties", "average", "sum"])
@pytest.mark.parametrize("backend", ["auto", "torch", "reference"])
def test_max_pools(mode, backend):
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 3)).double()
    x = torch.randn(2, 1, 10, 10, dtype=torch.float64)
    composite = replace(composites.resolve("epsilon_plus"), max_pool=mode)
    explainer = fastlrp.Explainer(model.eval(), composite, backend=backend)
    with explainer.forward(x) as record:
        assert max(errors_of_steps(record).values()) < LARGEST


def test_contrasts_and_initial_relevance():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).double().eval()
    x = torch.randn(2, 6, dtype=torch.float64)
    explainer, parts = fastlrp.Explainer(model, "epsilon"), groups.features([[0, 1], [2, 3, 4], [5, 0]])
    given = torch.randn(5, 4, dtype=torch.float64)
    for targets, initial in (([{0: 1.0, 2: -1.0}, 3], "output"), ("all", "one"), (given, "output"), ("top2", "output")):
        up, down = (explainer(x, targets, initial, groups=parts, direction=way) for way in ("up", "down"))
        assert difference(up, down) < BOUND
        entries = explainer(x, targets, initial)
        expected = torch.stack(
            [entries[..., [0, 1]].sum(-1), entries[..., 2:5].sum(-1), entries[..., [5, 0]].sum(-1)], -1
        )
        assert difference(up, expected) < BOUND


def test_whole_inputs_and_weights():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.out = nn.Linear(3, 4), nn.Linear(5, 4), nn.Linear(4, 2)

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return self.out((self.a(a) + self.b(b)).relu())

    model, x = Two().double().eval(), (torch.randn(2, 3).double(), torch.randn(2, 5).double())
    explainer = fastlrp.Explainer(model, "epsilon")
    first, second = explainer(x, "all")
    expected = torch.stack([first.sum(-1), second.sum(-1)], -1)
    for way in ("up", "down"):
        assert difference(explainer(x, "all", groups="inputs", direction=way), expected) < BOUND
    with pytest.raises(ValueError, match="2 inputs have relevance"):
        explainer(x, "all", groups="tokens")

    plain, weights = fastlrp.Explainer(nn.Linear(3, 2).double().eval(), "epsilon"), torch.randn(4, 3).double()
    entries = plain(x[0], "all")
    for way in ("up", "down"):
        assert difference(plain(x[0], "all", groups=weights, direction=way), entries @ weights.t()) < BOUND


def test_blocks_of_groups_and_streams():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 20)).double().eval()
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    whole = fastlrp.Explainer(model, "epsilon")(x, "all", groups=groups.patches(2), direction="up")
    small = fastlrp.Explainer(model, "epsilon", max_memory=150_000)
    assert difference(small(x, "all", groups=groups.patches(2), direction="up"), whole) < BOUND
    for way in ("up", "down"):
        pieces = list(small.forward(x).stream("all", groups=groups.patches(2), direction=way, block=7))
        assert [piece[0] for piece in pieces] == [range(7), range(7, 14), range(14, 20)]
        assert difference(torch.cat([piece[1] for piece in pieces], 1), whole) < BOUND


def test_the_choice_says_why():
    model = (
        nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 100)).double().eval()
    )
    x = torch.randn(1, 64, dtype=torch.float64)
    with fastlrp.Explainer(model, "epsilon").forward(x) as record:
        halves = groups.features([range(32), range(32, 64)])
        record.relevance("all", groups=halves)
        assert record.direction.direction == "up"
        assert "100 targets and 2 groups" in str(record.direction)
        assert "groups went up: the cheaper one" in str(record.plan)
        record.relevance([3], groups=halves)
        assert record.direction.direction == "down"
        assert record.direction.down < record.direction.up


def test_the_middle_where_receptive_fields_are_small_below_and_targets_few_above():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4096, 100),
    )  # fmt: skip
    x = torch.rand(1, 1, 64, 64, dtype=torch.float64)
    with fastlrp.Explainer(model.double().eval(), "epsilon_plus", paths="dense").forward(x) as record:
        ways = [record.estimate(list(range(count)), groups=groups.patches(8)).direction for count in (1, 8, 100)]
        assert ways == ["down", "middle", "up"]
        found = record.relevance(list(range(8)), groups=groups.patches(8))
        assert record.direction.direction == "middle"
        assert "meeting at " in record.direction.why
        assert record.direction.middle < min(record.direction.down, record.direction.up)
        assert difference(found, record.relevance(list(range(8)), groups=groups.patches(8), direction="down")) < BOUND
        with pytest.raises(ValueError, match="estimate compares ways for groups="):
            record.estimate([0])


def test_rules_that_are_not_linear():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).double().eval()
    x = torch.randn(2, 4, dtype=torch.float64)
    with fastlrp.Explainer(model, "guided_backprop").forward(x) as record:
        with pytest.raises(
            fastlrp.UnsupportedOperationError, match=r"1 \(relu, GuidedBackprop\) is not: use direction"
        ):
            record.relevance("all", groups=groups.features([0, 1]), direction="up")
        found = record.relevance("all", groups=groups.features([0, 1]))
        assert difference(found, record.relevance("all")[..., :2]) < BOUND
        assert "1 (relu, GuidedBackprop) is not linear" in record.direction.why


def test_errors():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)).double().eval()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    record = fastlrp.Explainer(model, "epsilon").forward(x)
    wrong = [
        ("tokens", ValueError, r"needs ids \(B, S\) or vectors \(B, S, D\)"),
        ("pixels", ValueError, "groups must be 'tokens', 'inputs'"),
        (3.5, TypeError, "got float"),
        (groups.patches((2, 2, 2)), ValueError, "3 axes"),
        (groups.labels(torch.zeros(5, 5, dtype=torch.int64)), ValueError, r"labels of shape \(5, 5\)"),
        (groups.labels(torch.full((6, 6), 7), 3), ValueError, "count is 3"),
        (groups.features([9]), IndexError, "index 9 is out of range"),
        (torch.zeros(4, 3, 6), ValueError, r"must be \(G, 3, 6, 6\)"),
    ]
    for given, error, message in wrong:
        with pytest.raises(error, match=message):
            record.relevance("all", groups=given)
    with pytest.raises(TypeError, match="integers"):
        groups.labels(torch.zeros(3))
    with pytest.raises(ValueError, match="at least 1"):
        groups.patches(0)
    with pytest.raises(ValueError, match="needs groups="):
        record.relevance("all", direction="up")
    with pytest.raises(ValueError, match="direction must be"):
        record.relevance("all", groups=groups.patches(2), direction="sideways")
    with pytest.raises(ValueError, match="leave layers, reduce and out away"):
        record.relevance("all", groups=groups.patches(2), reduce="channels")
    with pytest.raises(ValueError, match="too small for the way up"):
        fastlrp.Explainer(model, "epsilon", max_memory=3_000)(x, "all", groups=groups.patches(2), direction="up")


def test_labels_of_as_many_samples_as_channels():
    """``(B, T)`` and ``(C, T)`` are one shape: nobody can tell which it is, unless both are the same."""
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(6, 4)).double().eval(), torch.randn(2, 2, 3, dtype=torch.float64)
    own = torch.tensor([[0, 0, 1], [1, 0, 0]])
    with fastlrp.Explainer(model, "lrp0").forward(x) as record:
        relevance = record.relevance("all")
        with pytest.raises(ValueError, match=r"labels.unsqueeze\(0\) for entries .* labels.unsqueeze\(1\) for each"):
            record.relevance("all", groups=groups.labels(own))
        for given, member in ((own.unsqueeze(1), own[:, None, None] == 1), (own.unsqueeze(0), own[None, None] == 1)):
            for direction in ("up", "down"):
                found = record.relevance("all", groups=groups.labels(given), direction=direction)
                expected = (relevance * member).sum((2, 3))
                torch.testing.assert_close(found[:, :, 1], expected, rtol=1e-12, atol=1e-13)
        record.relevance("all", groups=groups.labels(torch.tensor([0, 0, 1]).expand(2, 3)))
