"""One target for each sample, next tokens and contrasts, against the same initial relevance given densely."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fastlrp
from fastlrp.targets import spellings
from fastlrp.targets.targets import Targets
from tests.api.at_positions import TIGHT, B, D, S, WithIds, X, Y, segment, text
from tests.api.models import gradient_times_input, relative_error, samples, shared


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
