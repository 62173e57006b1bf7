"""Attention that a model writes out goes down in one step, as fused attention does: soft caps, sinks, masks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fastlrp
from fastlrp import composites
from fastlrp.plan import lower as lowering
from tests.transformers.oracle import relevance

HEADS, WIDTH = 2, 8


class Written(nn.Module):
    """A layer of attention and classes; ``detached`` has gradients that are AttnLRP's relevance per unit."""

    def __init__(self, cap: float = 0.0, sink: bool = False, mask: str = "") -> None:
        super().__init__()
        torch.manual_seed(3)
        self.cap, self.mask = cap, mask
        self.qkv, self.classes = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, 5)
        self.sinks = nn.Parameter(torch.randn(HEADS)) if sink else None
        self.bias = nn.Parameter(torch.randn(HEADS, 6, 6))
        self.double().eval()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self._forward(x, False, mask)

    def detached(self, x: Tensor) -> Tensor:
        return self._forward(x, True)

    def _forward(self, x: Tensor, detached: bool, mask: Tensor | None = None) -> Tensor:
        def product(a: Tensor, b: Tensor) -> Tensor:
            return (a @ b.detach() + a.detach() @ b) / 2 if detached else a @ b

        parts = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = parts.unbind(0)
        scores = product(q, k.transpose(-1, -2)) / 2.0
        if self.cap:
            capped = self.cap * torch.tanh(scores / self.cap)
            scores = scores * (capped / scores).detach() if detached else capped
        length = x.shape[1]
        if "bias" in self.mask:
            scores = scores + self.bias[:, :length, :length]
        if "causal" in self.mask:
            scores = scores + torch.full((length, length), torch.finfo(x.dtype).min, dtype=x.dtype).triu(1)
        if mask is not None:
            scores = scores + mask
        if self.sinks is not None:
            column = self.sinks.reshape(1, -1, 1, 1).expand(x.shape[0], -1, length, -1)
            scores = torch.cat([scores, column], dim=-1)
            scores = scores - scores.max(dim=-1, keepdim=True).values
        p = scores.softmax(-1)
        if self.sinks is not None:
            p = p[..., :-1]
        p = nn.functional.dropout(p, 0.1, self.training)
        mixed = product(p, v).transpose(1, 2).flatten(2)
        return self.classes(mixed.mean(1))


CASES = {
    "plain": {},
    "causal": {"mask": "causal"},
    "bias and causal": {"mask": "bias causal"},
    "cap": {"cap": 0.7},
    "cap and causal": {"cap": 0.7, "mask": "causal"},
    "sink": {"sink": True},
    "sink, cap and causal": {"sink": True, "cap": 1.5, "mask": "bias causal"},
}


@pytest.fixture
def unfused(monkeypatch: pytest.MonkeyPatch):
    def explainer(*args: object, **kwargs: object) -> fastlrp.Explainer:
        with monkeypatch.context() as patched:
            patched.setattr(lowering, "find_eager_attention", lambda graph: [])
            return fastlrp.Explainer(*args, **kwargs)

    return explainer


@pytest.mark.parametrize("case", CASES)
def test_one_step_gives_what_all_steps_give(case, unfused):
    """Worst measured: 7e-16 of the largest against the unfused steps, 3e-15 against autograd."""
    model, x = Written(**CASES[case]), torch.randn(2, 6, WIDTH, dtype=torch.float64)
    explainer = fastlrp.Explainer(model, "attnlrp", example_inputs=x)
    assert len(explainer.plan.program.alternatives) == 1
    found = explainer(x, [0, 3, 4])
    expected = unfused(model, "attnlrp", example_inputs=x)(x, [0, 3, 4])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found, relevance(model.detached, x, [0, 3, 4]), rtol=1e-10, atol=1e-13)
    report = explainer.verify(x, [0, 3])
    assert report.ok
    assert abs(report.kept["unexplained"]) < 1e-10
    torch.testing.assert_close(found[:, [1]], explainer(x, [3]), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(explainer(x.flip(0), [0, 3, 4]), found.flip(0), rtol=1e-12, atol=1e-14)


def test_scores_of_targets_are_never_held():
    """No register of the way down has an entry for each pair of positions."""
    x = torch.randn(1, 6, WIDTH, dtype=torch.float64)
    explainer = fastlrp.Explainer(Written(0.7, True, "causal"), "attnlrp", example_inputs=x)
    schedule = explainer.plan.schedule(explainer.plan.explained_inputs())
    pairs = HEADS * 6 * 6
    steps = [step for step, _ in schedule.steps if hasattr(step, "numels")]
    attention = next(step for step in steps if len(step.outs) == 3)
    assert attention.numels == (6 * WIDTH,) * 3
    assert all(pairs not in step.numels and pairs + HEADS * 6 not in step.numels for step in steps)
    # The values between are there for who asks for them.
    with explainer.forward(x) as record:
        names = [name for name in explainer.plan.calls() if "softmax" in name]
        asked = record.relevance([0, 1], layers=names)
        assert asked[names[0]].shape == (1, 2, HEADS, 6, 7)
        torch.testing.assert_close(asked["input"], record.relevance([0, 1]), rtol=1e-12, atol=1e-14)


def test_with_epsilon_where_no_mask_is_added(unfused):
    x = torch.randn(2, 6, WIDTH, dtype=torch.float64)
    for case, count in (("plain", 1), ("sink", 1), ("causal", 0)):
        model, composite = Written(**CASES[case]), composites.attnlrp(epsilon=1e-2)
        explainer = fastlrp.Explainer(model, composite, example_inputs=x)
        assert len(explainer.plan.program.alternatives) == count
        expected = unfused(model, composite, example_inputs=x)(x, [0, 3])
        torch.testing.assert_close(explainer(x, [0, 3]), expected, rtol=1e-12, atol=1e-14)
        assert explainer.verify(x, [0, 3]).ok


@pytest.mark.parametrize("case", ["cap and causal", "sink"])
def test_the_way_up_is_the_way_down(case, unfused):
    """Each position a group; and what of the probabilities, which stand between the steps, comes from each."""
    model, x = Written(**CASES[case]), torch.randn(2, 6, WIDTH, dtype=torch.float64)
    groups = torch.arange(6).unsqueeze(1).expand(6, WIDTH)
    found = []
    for explainer in (
        fastlrp.Explainer(model, "attnlrp", example_inputs=x),
        unfused(model, "attnlrp", example_inputs=x),
    ):
        with explainer.forward(x) as record:
            down, up = (
                record.relevance([0, 3], groups=fastlrp.groups.labels(groups), direction=direction)
                for direction in ("down", "up")
            )
            name = next(name for name in explainer.plan.calls() if "softmax" in name)
            found.append((down, up, record.contributions(fastlrp.groups.labels(groups), layers=[name])[name]))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(found[0][0], found[0][1], rtol=1e-11, atol=1e-13)
    assert bool((found[0][2] != 0).any())


def test_other_rules_take_the_steps_one_by_one():
    x = torch.randn(2, 6, WIDTH, dtype=torch.float64)
    model = Written(**CASES["sink, cap and causal"])
    for composite in ("cp_lrp", "epsilon_plus", "gradient"):
        explainer = fastlrp.Explainer(model, composite, example_inputs=x)
        assert not explainer.plan.program.alternatives
        assert explainer.verify(x, [0, 3]).ok


def test_a_row_that_is_masked_everywhere_attends_to_all(unfused):
    """By the smallest number, beside which its scores are lost in rounding: its probabilities are 1 / 6 each."""
    model, x = Written(mask="given"), torch.randn(2, 6, WIDTH, dtype=torch.float64)
    allowed = torch.ones(2, 1, 6, 6, dtype=torch.bool).tril()
    allowed[1, :, :, :2] = False  # The first two rows of the second sample see nothing.
    mask = torch.zeros(allowed.shape, dtype=torch.float64).masked_fill(~allowed, torch.finfo(torch.float64).min)
    found, expected = (make(model, "attnlrp")((x, mask), [0, 3])[0] for make in (fastlrp.Explainer, unfused))
    assert bool((found[1] != 0).any())
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


class ReadTwice(nn.Module):
    """The result of attention plus itself: two readers of it, whose relevance is added up before the step."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        mixed = (q @ k.mT).softmax(-1) @ v
        return (mixed + mixed).flatten(1)


@pytest.mark.parametrize("composite", ["attnlrp", "epsilon_plus"])
def test_the_sum_for_several_readers_of_the_result_stays(composite, unfused):
    x = torch.randn(2, 6, WIDTH, dtype=torch.float64)
    explainer = fastlrp.Explainer(ReadTwice(), composite, example_inputs=x)
    assert len(explainer.plan.program.alternatives) == 1
    expected = unfused(ReadTwice(), composite, example_inputs=x)(x, [0, 7])
    for way in ("down", "up"):
        found = explainer(x, [0, 7], groups="tokens", direction=way)
        torch.testing.assert_close(found, expected.sum(-1), rtol=1e-12, atol=1e-14)
    with explainer.forward(x) as record:
        parts = record.contributions("tokens", ["output"])["output"]
    down = explainer(x, "all", groups="tokens", direction="down")
    torch.testing.assert_close(parts, down.mT, rtol=1e-9, atol=1e-12)
