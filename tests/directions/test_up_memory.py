"""Streams of groups, targets and contributions: measured peaks stay within ``max_memory``, numbers are the whole's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fastlrp
from fastlrp import groups

TARGETS = 3000
PARTS = groups.patches(4)
LIMIT = 1_300_000


def peak_bytes_of(run: Callable[[], object]) -> int:
    """The most bytes of tensors that ``run`` holds at once, beside those that were there before."""
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4),
        nn.Flatten(), nn.Linear(968, TARGETS),
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.rand(1, 1, 44, 44)


def test_streams_stay_within_the_budget(model, x):
    """The whole result has 1.45 MB, more than the budget."""
    whole = fastlrp.Explainer(model, "epsilon_plus")(x, "all", groups=PARTS, direction="up")
    assert whole.shape == (1, TARGETS, 121)
    assert whole.nbytes > LIMIT
    record = fastlrp.Explainer(model, "epsilon_plus", max_memory=LIMIT).forward(x)
    for over, axis in (("groups", 2), ("targets", 1)):
        stream = lambda over=over: record.stream("all", groups=PARTS, direction="up", over=over)  # noqa: E731
        next(stream())
        assert peak_bytes_of(lambda stream=stream: [None for _ in stream()]) <= LIMIT
        pieces = list(stream())
        assert len(pieces) > 1
        torch.testing.assert_close(torch.cat([piece for _, piece in pieces], axis), whole, rtol=1e-4, atol=1e-7)
        assert [n for numbers, _ in pieces for n in numbers] == list(range(whole.shape[axis]))
    few = lambda: record.stream([3, 7] * 40, groups=PARTS, direction="down")  # noqa: E731
    assert peak_bytes_of(lambda: [None for _ in few()]) <= LIMIT
    torch.testing.assert_close(next(few())[1][:, :2], whole[:, [3, 7]], rtol=1e-4, atol=1e-7)


def test_stream_of_contributions(model, x):
    layers = ["0", "2", "4"]
    whole = fastlrp.Explainer(model, "epsilon_plus").forward(x).contributions(PARTS, layers)
    limit = 2 * LIMIT
    assert sum(t.nbytes for t in whole.values()) > 5 * limit
    record = fastlrp.Explainer(model, "epsilon_plus", max_memory=limit).forward(x)
    stream = lambda: record.stream_contributions(PARTS, layers)  # noqa: E731
    next(stream())
    assert peak_bytes_of(lambda: [None for _ in stream()]) <= limit
    pieces = list(stream())
    assert len(pieces) > 1
    for name in layers:
        torch.testing.assert_close(torch.cat([piece[name] for _, piece in pieces], 1), whole[name])
        torch.testing.assert_close(pieces[-1][1].kept[name], whole.kept[name], rtol=1e-4, atol=1e-5)


def test_errors(model, x):
    record = fastlrp.Explainer(model, "epsilon_plus").forward(x)
    for arguments in ({"over": "rows"}, {"over": "groups", "groups": None}, {"over": "groups", "block": 3}):
        with pytest.raises(ValueError, match="over must be 'targets', or 'groups' together with groups="):
            next(record.stream("all", **{"groups": PARTS, **arguments}))
    with pytest.raises(ValueError, match="a stream over groups goes up, and direction is 'down'"):
        next(record.stream("all", groups=PARTS, over="groups", direction="down"))
    small = fastlrp.Explainer(model, "epsilon_plus", max_memory=10_000).forward(x)
    with pytest.raises(ValueError, match="too small for the way up: one group of a batch of 1 needs"):
        next(small.stream("all", groups=PARTS, over="groups"))


@pytest.mark.parametrize("way", ["up", "down"])
@pytest.mark.parametrize("limit", [1_500_000, 4_000_000])
def test_copies_of_weights_are_counted(way, limit):
    """Kernels for alive neurons read copies, made at the first call: 0.9 MB of two convolutions, two more beside."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 96, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4), nn.Conv2d(96, 96, 3, padding=1), nn.ReLU(),
        nn.Conv2d(96, 96, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(864, 40),
    ).eval()  # fmt: skip
    record = fastlrp.Explainer(model, "epsilon_plus", max_memory=limit, paths="sparse").forward(
        torch.rand(1, 3, 12, 12)
    )
    asked = {"groups": groups.patches(1), "direction": "up", "over": "groups"} if way == "up" else {}
    pieces: list[Tensor] = []
    stream = lambda: pieces.extend(piece for _, piece in record.stream("all", **asked))  # noqa: E731
    results = 144 * 40 * 4 if way == "up" else 40 * 432 * 4
    assert peak_bytes_of(stream) <= limit + results
    whole = fastlrp.explain(model, record._inputs.tensors[0], "all", groups=asked.get("groups"))
    torch.testing.assert_close(torch.cat(pieces, 2 if way == "up" else 1), whole, rtol=1e-4, atol=1e-6)
