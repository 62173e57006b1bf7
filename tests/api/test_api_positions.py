"""Targets at positions of an output, against the same initial relevance given densely."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastlrp
from fastlrp.targets.one_hot import OneHot
from tests.api.at_positions import CASES, TIGHT, TOP, B, D, S, Text, V, X, Y, dense, explained_text, segment, text
from tests.api.models import relative_error, samples, shared


@pytest.fixture(scope="module")
def explainer() -> fastlrp.Explainer:
    return explained_text()


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
