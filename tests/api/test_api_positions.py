"""Targets at positions of an output, contrasts, one per sample: against the same initial relevance given densely."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastlrp
from fastlrp.targets import spellings
from fastlrp.targets.one_hot import OneHot
from fastlrp.targets.targets import Targets
from tests.api.models import gradient_times_input, relative_error, samples, shared

B, S, D, V = 3, 6, 4, 9
TIGHT = 1e-12


class Text(nn.Module):
    """(B, 6, 4) -> (B, 6, 9): positions mix before the head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.mix, self.head = nn.Linear(D, 5), nn.Conv1d(S, S, 1), nn.Linear(5, V)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.mix(F.relu(self.first(x)))))


class WithIds(Text):
    """The same beside ids, which say what is padding."""

    def forward(self, x: Tensor, input_ids: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x.masked_fill((input_ids == 0).unsqueeze(-1), 0))


def text(kind: type[nn.Module] = Text, dtype: torch.dtype = torch.float64) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind().to(dtype).eval()


X = torch.randn(B, S, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = text()(X).detach()


@pytest.fixture(scope="module")
def explainer() -> fastlrp.Explainer:
    return fastlrp.Explainer(text(), "epsilon_plus", example_inputs=X)


def dense(entries: list[list[dict[tuple[int, int], float]]], values: Tensor = Y) -> Tensor:
    """``(B, K, S, V)`` from, per sample, K dicts of (position, class) -> weight."""
    made = torch.zeros(B, len(entries[0]), S, V, dtype=torch.float64)
    for b, targets in enumerate(entries):
        for k, target in enumerate(targets):
            for (t, c), weight in target.items():
                made[b, k, t, c] += weight * values[b, t, c]
    return made


def shared_by_all(*targets: dict[tuple[int, int], float]) -> list[list[dict[tuple[int, int], float]]]:
    return [list(targets)] * B


def one(*places: tuple[int, int]) -> list[list[dict[tuple[int, int], float]]]:
    return shared_by_all(*({place: 1.0} for place in places))


TOP = Y.topk(2, dim=2).indices

CASES = {
    "one": (7, 2, one((2, 7))),
    "last": (7, -1, one((5, 7))),
    "numpy": (np.int64(7), np.int64(2), one((2, 7))),
    "crossed, positions outermost": ([7, 0], [3, -1], one((3, 7), (3, 0), (5, 7), (5, 0))),
    "range": (range(2), range(2), one((0, 0), (0, 1), (1, 0), (1, 1))),
    "all classes": ("all", 4, one(*((4, c) for c in range(V)))),
    "all positions": (8, "all", one(*((t, 8) for t in range(S)))),
    "everything": ("all", "all", one(*((t, c) for t in range(S) for c in range(V)))),
    "best of the position": (
        "top2", [1, 5], [[{(t, int(TOP[b, t, i])): 1.0} for t in (1, 5) for i in range(2)] for b in range(B)],
    ),
    "classes per sample": (
        torch.tensor([[1, 2], [3, 4], [5, 6]]), 3, [[{(3, c): 1.0} for c in row] for row in ((1, 2), (3, 4), (5, 6))],
    ),
    "each class": (fastlrp.each([8, 0, 4]), 3, [[{(3, c): 1.0}] for c in (8, 0, 4)]),
    "each position": (1, fastlrp.each([0, -2, 5]), [[{(t, 1): 1.0}] for t in (0, 4, 5)]),
    "both each": (
        fastlrp.each(np.array([8, 0, 4])), fastlrp.each(torch.tensor([2, 2, 0])),
        [[{(2, 8): 1.0}], [{(2, 0): 1.0}], [{(0, 4): 1.0}]],
    ),
    "positions per sample": (
        [6], torch.tensor([[0, 1], [2, 3], [4, 5]]), [[{(t, 6): 1.0} for t in row] for row in ((0, 1), (2, 3), (4, 5))],
    ),
    "pairs": ([(3, 7), (5, 8), (-1, 0)], "pairs", one((3, 7), (5, 8), (5, 0))),
    "pairs as a tensor": (torch.tensor([[3, 7], [5, 8]]), "pairs", one((3, 7), (5, 8))),
    "pairs per sample": (
        torch.tensor([[[3, 7]], [[0, 8]], [[1, 1]]]), "pairs", [[{(3, 7): 1.0}], [{(0, 8): 1.0}], [{(1, 1): 1.0}]],
    ),
    "each pair": (
        fastlrp.each([(3, 7), (0, 8), (1, 1)]), "pairs", [[{(3, 7): 1.0}], [{(0, 8): 1.0}], [{(1, 1): 1.0}]],
    ),
    "contrast": ({3: 1.0, 7: -0.5}, 2, shared_by_all({(2, 3): 1.0, (2, 7): -0.5})),
    "contrasts and classes": (
        [4, {3: 1.0, 7: -0.5, 8: 2}, {0: 3}], [0, 2],
        shared_by_all(*(d for t in (0, 2) for d in (
            {(t, 4): 1.0}, {(t, 3): 1.0, (t, 7): -0.5, (t, 8): 2.0}, {(t, 0): 3.0}))),
    ),
    "contrast of each sample": (
        fastlrp.each([{3: 1.0, 7: -0.5}, 2, {0: 2.0}]), -1,
        [[{(5, 3): 1.0, (5, 7): -0.5}], [{(5, 2): 1.0}], [{(5, 0): 2.0}]],
    ),
    "contrast of positions": (
        [{(3, 7): 1.0, (5, 7): -1.0}, (0, 0)], "pairs", shared_by_all({(3, 7): 1.0, (5, 7): -1.0}, {(0, 0): 1.0}),
    ),
    "next tokens": (
        fastlrp.next_tokens([[1, 2, 3, 4, 5, 6], [0, 8, 0, 8, 0, 8], [7, 7, 7, 7, 7, 7]]), None,
        [[{(t, ids[t + 1]): 1.0} for t in range(5)] for ids in ((1, 2, 3, 4, 5, 6), (0, 8, 0, 8, 0, 8), (7,) * 6)],
    ),
    "next tokens of some positions": (
        fastlrp.next_tokens(torch.tensor([[1, 2, 3, 4, 5, 6], [0, 8, 0, 8, 0, 8], [7, 7, 7, 7, 7, 7]])), [4, 0],
        [[{(4, a): 1.0}, {(0, b): 1.0}] for a, b in ((6, 2), (8, 8), (7, 7))],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_equals_the_dense_start(name, explainer, monkeypatch):
    targets, at, entries = CASES[name]
    expected = explainer(X, dense(entries))
    assert explainer.plan.takes_one_hot
    ones = explainer(X, dense(entries, torch.ones_like(Y)))
    squares = explainer(X, dense(entries, Y**2))
    streamed = fastlrp.Explainer(explainer.model, "epsilon_plus", max_memory=12_000)
    monkeypatch.setattr(OneHot, "dense", lambda self: pytest.fail("the output's relevance was made dense"))
    assert relative_error(explainer(X, targets, at=at), expected) <= TIGHT
    assert relative_error(explainer(X, targets, initial="one", at=at), ones) <= TIGHT
    assert relative_error(explainer(X, targets, initial=lambda y: y**2, at=at), squares) <= TIGHT
    for lrp_aware in (True, False, "sweep"):
        with explainer.forward(X, lrp_aware) as record:
            assert relative_error(record.relevance(targets, at=at), expected) <= TIGHT
            parts = list(record.stream(targets, at=at, block=2))
            assert relative_error(torch.cat([part for _, part in parts], 1), expected) <= TIGHT
    assert relative_error(streamed(X, targets, at=at), expected) <= TIGHT


@pytest.mark.parametrize("name", ["one", "best of the position", "contrasts and classes", "pairs", "next tokens"])
def test_verify_and_layers(name, explainer):
    targets, at, entries = CASES[name]
    verification = explainer.verify(X, targets, at=at)
    assert verification.ok
    assert verification.score == pytest.approx(float(dense(entries).sum()))
    found, expected = explainer(X, targets, layers="all", at=at), explainer(X, dense(entries), layers="all")
    for layer in expected:
        assert relative_error(found[layer], expected[layer]) <= TIGHT
    assert torch.equal(found["output"], dense(entries))


class Signed(Text):
    """The head's input has both signs."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(F.relu(self.first(x))))


RULES = {"zplus": fastlrp.rules.ZPlus(), "gamma": fastlrp.rules.Gamma(0.3)}


@pytest.mark.each_value
@pytest.mark.parametrize("model", [text(), text(Signed)], ids=["positive", "signed"])
@pytest.mark.parametrize("composite", ["epsilon", "gradient", "alpha_beta", "zplus", "gamma"])
def test_other_rules_at_the_head(composite, model):
    rules = {name: fastlrp.composites.uniform(rule) for name, rule in RULES.items()}
    explainer = fastlrp.Explainer(model, rules.get(composite, composite), example_inputs=X)
    assert explainer.plan.takes_one_hot == (composite != "alpha_beta")
    if composite in RULES:
        assert explainer.verify(X, [3, 1], at=[0, -1]).ok
    for name in ("crossed, positions outermost", "contrasts and classes", "both each"):
        targets, at, entries = CASES[name]
        start = dense(entries, model(X).detach())
        assert relative_error(explainer(X, targets, at=at), explainer(X, start)) <= TIGHT


@pytest.mark.parametrize(
    "choose",
    [
        lambda y: y[:, -1], lambda y: y[:, 2:4, 1:], lambda y: y.transpose(1, 2), lambda y: y.flatten(1),
        lambda y: y[:, 3].unsqueeze(1), lambda y: y.permute(0, 2, 1).reshape(-1, 3, 18), lambda y: y.flip(2)[:, 1:],
        lambda y: F.pad(y, (1, 2)), lambda y: y[:, :, None].expand(-1, -1, 2, -1).flatten(1, 2),
        lambda y: y.narrow(1, 1, 2),
        lambda y: y[:, ::2], lambda y: y.unbind(1)[2], lambda y: y[..., 4], lambda y: y.chunk(2, 2)[1],
    ],
)  # fmt: skip
def test_one_hot_through_copies_of_the_output(choose, monkeypatch):
    model = text()
    explainer = fastlrp.Explainer(model, "epsilon", output=choose)
    y = choose(model(X).detach())
    count = y[0].numel()
    kept = (torch.randperm(count, generator=torch.Generator().manual_seed(3))[:7]).tolist()
    start = torch.zeros(B, len(kept), count, dtype=torch.float64)
    start[:, range(len(kept)), kept] = y.flatten(1)[:, kept]
    expected = explainer(X, start.view(B, len(kept), *y.shape[1:]))
    assert explainer.plan.takes_one_hot
    places = [tuple(int(i) for i in np.unravel_index(k, y.shape[1:])) for k in kept]
    monkeypatch.setattr(OneHot, "dense", lambda self: pytest.fail("the output's relevance was made dense"))
    if y.dim() == 2:
        assert relative_error(explainer(X, [c for (c,) in places]), expected) <= TIGHT
        whole = {c: 1.0 for (c,) in places}
        found = explainer(X, whole)
    else:
        assert relative_error(explainer(X, places, at="pairs"), expected) <= TIGHT
        found = explainer(X, dict.fromkeys(places, 1.0), at="pairs")
    assert relative_error(found, expected.sum(1, keepdim=True)) <= 1e-11


def test_rows_of_another_dtype():
    """A head in float32 under logits in float64, as models that upcast their scores have it."""
    model = text(dtype=torch.float32)
    explainer = fastlrp.Explainer(model, "epsilon", output=lambda y: y.double())
    x = X.float()
    start = torch.zeros(1, S, V, dtype=torch.float64)
    start[0, 2, 7] = 1.0
    expected = explainer(x, start * torch.ones(B, 1, 1, 1))
    assert explainer.plan.takes_one_hot
    assert relative_error(explainer(x, 7, initial="one", at=2), expected) <= 1e-6


@pytest.mark.parametrize(
    "composite",
    ["epsilon_plus", "gradient", fastlrp.composites.uniform(RULES["gamma"])],
    ids=["epsilon_plus", "gradient", "gamma"],
)
def test_no_sample_and_one_sample(composite):
    explainer = fastlrp.Explainer(text(), composite)
    for targets, at in ((7, -1), ({7: 1.0, 2: -1.0}, [0, 3]), ([(3, 7)], "pairs")):
        everything = explainer(X, targets, at=at)
        assert explainer(X[:0], targets, at=at).shape == (0, *everything.shape[1:])
        assert relative_error(explainer(X[:1], targets, at=at), everything[:1]) <= TIGHT


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits(dtype):
    """A sum with one term that is not zero is that term, in any dtype."""
    model = text(dtype=dtype)
    explainer = fastlrp.Explainer(model, "epsilon")
    x = X.to(dtype)
    start = torch.zeros(1, S, V)
    start[0, 2, 7] = 1.0
    expected = explainer(x, start)
    assert explainer.plan.takes_one_hot
    found = explainer(x, 7, initial="one", at=2)
    assert found.dtype == dtype
    assert torch.equal(found, expected)


# Outputs whose classes are axis 1


def segment(targets, **options):
    return shared("segment", "lrp0")(samples("segment"), targets, **options)


def test_a_pixel_and_a_mask_of_a_segmentation():
    y = shared("segment", "lrp0").model(samples("segment")).detach()
    start = torch.zeros(2, 2, 3, 3, 3, dtype=torch.float64)
    start[:, 0, 2, 1, 0], start[:, 1, 0, 1, 0] = y[:, 2, 1, 0], y[:, 0, 1, 0]
    pixel = segment(start)
    assert relative_error(segment([2, 0], at=(1, 0)), pixel) <= TIGHT
    assert relative_error(segment([2, 0], at=(1, -3)), pixel) <= TIGHT
    assert relative_error(segment([2, 0], at=[(1, 0), (0, 2)])[:, :2], pixel) <= TIGHT
    assert relative_error(segment([(2, 1, 0), (0, 1, 0)], at="pairs"), pixel) <= TIGHT
    mask = torch.zeros(3, 3, dtype=torch.bool)
    mask[1, 0] = mask[2, 2] = True
    area = segment([2, 0], at=[(1, 0), (2, 2)])
    expected = area[:, :2] + area[:, 2:]
    assert relative_error(segment([2, 0], at=mask), expected) <= TIGHT
    both = torch.stack([mask, torch.zeros_like(mask)])
    both[1, 0, 1] = True
    mixed = segment([2, 0], at=both)
    assert relative_error(mixed[0], expected[0]) <= TIGHT
    assert relative_error(mixed[1], segment([2, 0], at=(0, 1))[1]) <= TIGHT
    best = (y * mask).sum((2, 3)).argmax(1)
    assert relative_error(segment("top1", at=mask), segment(fastlrp.each(best), at=mask)) <= TIGHT
    each_cell = segment(1, at=fastlrp.each([(0, 0), (2, 1)]))
    assert relative_error(each_cell[1], segment(1, at=(2, 1))[1]) <= TIGHT


def test_contrasts_without_positions():
    x = samples("convnet")
    explainer = shared("convnet", "lrp0")
    truth = gradient_times_input(explainer.model, x)
    expected = truth[:, 1:2] - 2 * truth[:, 4:]
    assert relative_error(explainer(x, {1: 1.0, 4: -2.0}), expected) <= TIGHT
    found = explainer(x, [{1: 1.0, 4: -2.0}, 3])
    assert relative_error(found, torch.cat([expected, truth[:, 3:4]], 1)) <= TIGHT
    y = explainer.model(x).detach()
    unit = truth / y.view(2, 5, 1, 1, 1)
    assert relative_error(explainer(x, {1: 1.0, 4: -2.0}, initial="one"), unit[:, 1:2] - 2 * unit[:, 4:]) <= TIGHT
    maps = segment([{1: 1.0, 2: -1.0}, 0])
    every = segment("all")
    assert relative_error(maps, torch.stack([every[:, 1] - every[:, 2], every[:, 0]], 1)) <= TIGHT


def test_scores_of_targets():
    asked = Targets([{1: 1.0, 4: -2.0}, 3], Y[:, 0])
    assert torch.allclose(asked.scores(), torch.stack([Y[:, 0, 1] - 2 * Y[:, 0, 4], Y[:, 0, 3]], 1))
    assert asked.index is None
    assert Targets([3, 1], Y, at=[0, 2]).index.tolist() == [[3, 1, 3, 1]] * B
    assert torch.equal(Targets([3, 1], Y, at=2).scores(), Y[:, 2, [3, 1]])


# Next tokens from the input


def test_a_report_names_positions(explainer):
    found = fastlrp.report.collect(explainer, X, "top2", at=[0, -1], ledger=2)
    best = [[f"{int(c)} at {t}" for t in (0, 5) for c in TOP[b, t]] for b in range(B)]
    assert [list(sample.targets) for sample in found] == best
    assert found[1].scores == pytest.approx([float(Y[1, t, int(c)]) for t in (0, 5) for c in TOP[1, t]])
    contrast = fastlrp.report.collect(explainer, X, {7: 1.0, 8: -1.0}, at=2, ledger=False)
    assert list(contrast[0].targets) == ["class 7 - class 8 at 2"]
    assert contrast[0].scores == pytest.approx([float(Y[0, 2, 7] - Y[0, 2, 8])])


def test_all_layers_at_a_position():
    found = fastlrp.lrp(text(), X, 7, "epsilon", at=-1)
    assert torch.equal(found["input"], fastlrp.explain(text(), X, 7, "epsilon", at=-1)[:, 0])
    assert fastlrp.lrp(text(), X, 7, "epsilon", at=[0, 1])["input"].shape == (B, 2, S, D)


def test_next_tokens_of_the_input():
    model = text(WithIds)
    ids = torch.tensor([[1, 2, 3, 4, 5, 6], [2, 8, 1, 8, 3, 8], [7, 7, 7, 7, 0, 0]])
    explainer = fastlrp.Explainer(model, "epsilon")
    inputs = {"x": X, "input_ids": ids}
    found = explainer(inputs, "next")["x"]
    assert found.shape == (B, S - 1, S, D)
    assert torch.equal(found, explainer(inputs, fastlrp.next_tokens(ids))["x"])
    assert torch.equal(explainer((X, ids), "next")[0], found)
    one_by_one = [explainer(inputs, fastlrp.each(ids[:, t + 1]), at=t)["x"] for t in range(S - 1)]
    assert relative_error(found, torch.cat(one_by_one, 1)) <= TIGHT
    assert relative_error(explainer(inputs, "next", at=[3, 1])["x"], found[:, [3, 1]]) <= TIGHT
    assert explainer.verify(inputs, "next").ok
    with pytest.raises(ValueError, match=r"needs the token ids among the inputs.*fastlrp.next_tokens\(ids\)"):
        fastlrp.explain(text(), X, "next", "epsilon")
    with pytest.raises(ValueError, match=r"targets 'next' are next tokens at .* \(B, S, V\), .* is \(3, 9\)"):
        fastlrp.explain(model, inputs, "next", "epsilon", output=lambda y: y[:, 0])


# One per sample


def test_each_without_positions():
    x = samples("convnet")
    explainer = shared("convnet", "lrp0")
    expected = explainer(x, torch.tensor([[4], [1]]))
    for labels in ([4, 1], (4, 1), np.array([4, 1]), torch.tensor([4, 1]), fastlrp.each([4, 1]), range(4, 0, -3)):
        assert torch.equal(explainer(x, fastlrp.each(labels)), expected)
    several = torch.tensor([[4, 0], [1, 1]])
    assert torch.equal(explainer(x, fastlrp.each(several)), explainer(x, several))


def test_a_tensor_of_one_class_per_sample_warns_once(monkeypatch, recwarn):
    monkeypatch.setattr(spellings, "_WARNED", set())
    x, explainer = samples("convnet"), shared("convnet", "lrp0")
    expected = explainer(x, [4, 1])
    explainer(x[:1], torch.tensor([4]))
    explainer(x, torch.tensor([4, 1, 0]))
    explainer(x, fastlrp.each(torch.tensor([4, 1])))
    assert not [w for w in recwarn if "1-D tensor" in str(w.message)]
    with pytest.warns(UserWarning, match=r"targets=fastlrp.each\(targets\) or targets=targets\[:, None\]"):
        assert torch.equal(explainer(x, torch.tensor([4, 1])), expected)
    with pytest.warns(UserWarning, match=r"at is a 1-D tensor of 3 integers .* 3 positions for every sample"):
        fastlrp.explain(text(), X, 0, "epsilon", at=torch.tensor([0, 1, 2]))
    recwarn.clear()
    explainer(x, torch.tensor([4, 1]))
    assert not [w for w in recwarn if "1-D tensor" in str(w.message)]


# What does not fit


@pytest.mark.parametrize(
    ("targets", "at", "error", "message"),
    [
        (0, 6, IndexError, r"position 6 is out of range: the output \(3, 6, 9\) has 6 positions, -6 to 5"),
        (0, [1, -7], IndexError, "position -7 is out of range"),
        (0, fastlrp.each([0, 1, 9]), IndexError, "position 9 is out of range"),
        (9, 2, IndexError, r"target 9 is out of range: the output \(3, 6, 9\) has 9 classes, 0 to 8"),
        (-1, 2, IndexError, "target -1 is out of range"),
        ({3: 1.0, 9: -1.0}, 2, IndexError, "target 9 is out of range"),
        ("top10", 2, IndexError, "'top10' asks for 10 classes, the output has 9"),
        ("top1", None, ValueError, r"'top1' needs an output \(B, C\), got \(3, 6, 9\); .*name some, at=-1"),
        (0, [], ValueError, "at= is empty: name at least one position"),
        ([], 2, ValueError, "targets is empty: name at least one class"),
        ({}, 2, ValueError, "empty contrast {}"),
        ([0, {}], 2, ValueError, "empty contrast {}"),
        ({3: "much"}, 2, TypeError, "the weight of 3 in a contrast must be a number, got 'much'"),
        ({3: float("nan")}, 2, ValueError, "the weight of 3 in a contrast must be finite, got nan"),
        ({"cat": 1.0}, 2, TypeError, "targets names the class 'cat', and the explainer knows no names"),
        ({True: 1.0}, 2, TypeError, "targets given as classes must be integers, got True"),
        (0, 1.5, TypeError, "at= names positions by integers, got torch.float32"),
        (0, True, TypeError, "at= names positions by integers, got torch.bool"),
        (0, {1}, TypeError, "at= must be a position, a list of positions"),
        (0, "first", ValueError, "at='first' is not known: use a position, a list of them, 'all' or 'pairs'"),
        (0, (3, 5), ValueError, r"at=\(3, 5\): as a tuple it is one place .* needs 1 number; .* list, at=\[3, 5\]"),
        (0, torch.zeros(2, 2, dtype=torch.long), ValueError, r"at= per sample must be \(B, P\) = \(3, P\)"),
        (0, torch.ones(6, dtype=torch.bool), ValueError, "at= is a bool mask, which stands for an area"),
        (0, fastlrp.each([0, 1]), ValueError, r"at= per sample must be \(B, P\) = \(3, P\), got \(2, 1\)"),
        (fastlrp.each([0, 1]), 0, ValueError, r"targets=fastlrp.each\(…\) has 2 entries for 3 samples"),
        (fastlrp.each([{0: 1.0}]), 0, ValueError, r"targets=fastlrp.each\(…\) has 1 entries for 3 samples"),
        (torch.ones(1, 6, 9), 2, ValueError, "initial relevance of all positions: leave at= out"),
        (0, "pairs", TypeError, r"tuples of 2 integers, .*, got 0"),
        ([3, 7], "pairs", ValueError, r"tuples of 2 integers, .*, got 3"),
        ([(3, 7, 1)], "pairs", ValueError, r"tuples of 2 integers, .*, got \(3, 7, 1\)"),
        ([(3, 9)], "pairs", IndexError, r"target \(3, 9\) is out of range: axis 2 of the output .* has 9 entries"),
        ([(6, 0)], "pairs", IndexError, r"target \(6, 0\) is out of range: axis 1 of the output .* has 6 entries"),
        ([(0.5, 0)], "pairs", TypeError, r"target \(0.5, 0\) must hold integers, got float"),
        ([], "pairs", ValueError, "targets is empty"),
        ("all", "pairs", TypeError, r"targets 'all' can't be pairs"),
        (torch.zeros(4, 3, dtype=torch.long), "pairs", ValueError, r"must be \(K, 2\) or \(3, K, 2\), got \(4, 3\)"),
        (fastlrp.next_tokens([[0] * 5] * 3), None, ValueError, r"has 6 positions for 3 texts, the ids are \(3, 5\)"),
        (fastlrp.next_tokens([[0] * 6] * 3), -1, IndexError, "position 5 is the text's last: no token follows"),
        (fastlrp.next_tokens([[10] * 6] * 3), 0, IndexError, "target 10 is out of range"),
        (fastlrp.next_tokens([[0] * 6] * 3), "pairs", ValueError, "next tokens have positions of their own"),
    ],
)  # fmt: skip
def test_what_does_not_fit(targets, at, error, message, explainer):
    with pytest.raises(error, match=message):
        explainer(X, targets, at=at)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: fastlrp.each(3), TypeError, r"each\(\) takes one entry for each sample, \(B,\), got int"),
        (lambda: fastlrp.each("ab"), TypeError, r"each\(\) takes one entry for each sample"),
        (lambda: fastlrp.each([]), ValueError, r"each\(\) is empty"),
        (lambda: fastlrp.each([0.5]), TypeError, r"each\(\) takes integers, got torch.float32"),
        (lambda: fastlrp.each([[1], [1, 2]]), TypeError, r"each\(\) takes one integer for each sample"),
        (lambda: fastlrp.each(torch.zeros(1, 1, 1).long()), ValueError, r"each\(\) takes \(B,\) or \(B, K\)"),
        (lambda: fastlrp.next_tokens([1, 2]), ValueError, r"takes token ids \(B, S\), got \(2,\)"),
        (lambda: fastlrp.next_tokens([[1.0]]), TypeError, "which are integers, got torch.float32"),
        (lambda: fastlrp.next_tokens("text"), TypeError, r"next_tokens\(\) takes token ids \(B, S\)"),
    ],
)
def test_bad_spellings(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_positions_of_an_output_without_any():
    for at in (0, "all", [1], (0,), "pairs"):
        with pytest.raises(ValueError, match=r"at=.* \(2, 5\).*: leave at= out"):
            shared("convnet", "lrp0")(samples("convnet"), 0, at=at)
    with pytest.raises(ValueError, match=r"a place is a tuple of 2 numbers, one for each further axis, or a bool mask"):
        segment(0, at=1)
    with pytest.raises(IndexError, match=r"at=\(1, 3\) is out of range: axis 3 of the output \(2, 3, 3, 3\)"):
        segment(0, at=(1, 3))
    with pytest.raises(ValueError, match=r"needs 2 numbers$"):
        segment(0, at=(1,))
    with pytest.raises(ValueError, match=r"a mask must be \(3, 3\) or \(2, 3, 3\), got \(2, 2\)"):
        segment(0, at=torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="a mask without a cell"):
        segment(0, at=torch.zeros(3, 3, dtype=torch.bool))
