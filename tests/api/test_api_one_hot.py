"""One-hot integers and masks as targets: what the same floats give, or an error that shows both spellings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import fastlrp.nn
from fastlrp import explain
from fastlrp.compat.captum import LRP
from tests.api.models import make, relative_error, samples, shared
from tests.api.replays import explainer_of, replay_of

LABELS = torch.tensor([3, 1])


def one_per_sample():
    return F.one_hot(LABELS, 5).unsqueeze(1)


@pytest.mark.parametrize(
    "targets",
    [
        one_per_sample(), one_per_sample().bool(), one_per_sample().to(torch.uint8), one_per_sample().int().numpy(),
        F.one_hot(torch.tensor([3, 1, 4]), 5), F.one_hot(torch.tensor([[3, 1, 4], [0, 0, 2]]), 5),
        torch.tensor([[1, 1, 0, 0, 1]]), torch.eye(5, dtype=torch.int64)[:3], torch.eye(5, dtype=torch.bool),
        one_per_sample() - F.one_hot(torch.tensor([0, 4]), 5).unsqueeze(1), 7 * one_per_sample(),
        np.eye(5, dtype=bool)[:2],
    ],
    ids=range(12),
)  # fmt: skip
def test_integers_and_masks_mean_what_floats_do(targets):
    x, explainer = samples("convnet"), shared("convnet")
    floats = torch.as_tensor(targets).double()
    expected = explainer(x, floats)
    assert torch.equal(explainer(x, targets), expected)
    with explainer.forward(x) as record:
        assert torch.equal(record.relevance(targets), expected)
        parts = [part for _, part in record.stream(targets, block=2)]
    assert relative_error(torch.cat(parts, 1), expected) <= 1e-12
    assert torch.equal(fastlrp.lrp(make("convnet"), x, targets)["input"], expected)


def test_one_hot_maps():
    x, explainer = samples("segment"), shared("segment")
    mask = torch.zeros(1, 3, 3, 3, dtype=torch.bool)
    mask[0, 1, 1:, 2] = True
    for given in (mask, mask.long(), mask.expand(2, 1, 3, 3, 3)):
        assert relative_error(explainer(x, given), explainer(x, mask.double())) <= 1e-12


def test_one_hot_is_not_read_as_classes():
    x, explainer = samples("convnet"), shared("convnet")
    hot = F.one_hot(LABELS, 5)
    with pytest.raises(ValueError, match=r"may be classes or one-hot relevance: write targets.tolist\(\) .*unsqueeze"):
        explainer(x, hot)
    assert relative_error(explainer(x, hot.tolist()), explainer(x, [list(row) for row in hot.tolist()])) == 0
    assert explainer(x, hot.unsqueeze(1)).shape[1] == 1
    assert explainer(x, hot.float()).shape[1] == 2
    single = F.one_hot(torch.tensor(3), 5)
    with pytest.raises(ValueError, match=r"write targets.tolist\(\) if these are 5 classes, targets\[None\] \* 1.0"):
        explainer(x, single)
    assert explainer(x, single.tolist()).shape[1] == 5
    assert torch.equal(explainer(x, single[None] * 1.0), explainer(x, single[None].double()))


def test_two_classes():
    model = torch.nn.Sequential(torch.nn.Linear(4, 2)).double().eval()
    x = samples("mlp", 3)
    assert explain(model, x, torch.tensor([0, 1])).shape[1] == 2
    assert explain(model, x, torch.tensor([[0, 0], [1, 1], [0, 1]])).shape[1] == 2
    with pytest.raises(ValueError, match="may be classes or one-hot"):
        explain(model, x, torch.tensor([[0, 1], [1, 0], [0, 1]]))
    assert explain(model, x, [[0, 1], [1, 0], [0, 1]]).shape[1] == 2


@pytest.mark.parametrize("targets", [torch.tensor([[1, 0, 1, 1, 2], [0, 1, 0, 0, 1]]), torch.tensor([[4], [0]]),
                                     torch.tensor([0, 1, 0, 1, 0]), torch.tensor([1]), np.array([3, 3]),
                                     torch.zeros(2, 5, dtype=torch.int64)])  # fmt: skip
def test_classes_stay_classes(targets):
    x, explainer = samples("convnet"), shared("convnet")
    assert torch.equal(explainer(x, targets), explainer(x, torch.as_tensor(targets).tolist()))


def test_shapes_that_are_neither():
    x, explainer = samples("convnet"), shared("convnet")
    with pytest.raises(ValueError, match=r"per sample must be \(B, K\)"):
        explainer(x, torch.tensor([[1, 2, 3, 4, 0]] * 3))
    with pytest.raises(ValueError, match=r"initial relevance must be \(K, 5\) or \(2, K, 5\)"):
        explainer(x, torch.ones(2, 1, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="targets is a bool tensor, which is the initial relevance itself"):
        explainer(x, torch.eye(5, dtype=torch.bool), initial="one")


def test_replay_takes_no_relevance():
    replay = replay_of(explainer_of("mlp"), samples("mlp"), 1)
    with pytest.raises(TypeError, match="a replay takes classes"):
        replay(samples("mlp"), F.one_hot(torch.tensor([[0], [2]]), 3))
    with pytest.raises(ValueError, match="may be classes or one-hot"):
        replay(samples("mlp"), F.one_hot(torch.tensor([0, 2]), 3))


def test_the_toolbox_interface():
    net = fastlrp.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3)).double().eval()
    net.forward(samples("mlp"), lrp_aware=True)
    hot = F.one_hot(torch.tensor([0, 2]), 3)
    for given in (hot, hot.bool(), hot.unsqueeze(1)):
        assert torch.equal(net.lrp(given, "epsilon", 0.1), net.lrp(given.double(), "epsilon", 0.1))


def test_captum_interface():
    lrp, x = LRP(make("convnet")), samples("convnet")
    with pytest.raises(ValueError, match=r"may be one-hot: write targets.argmax\(1, keepdim=True\)"):
        lrp.attribute(x, targets=F.one_hot(LABELS, 5))
    hot = F.one_hot(LABELS, 5).argmax(1, keepdim=True)
    assert torch.equal(lrp.attribute(x, targets=hot)[:, 0], lrp.attribute(x, target=LABELS))


def test_zennit_interface():
    from fastlrp.compat.zennit import Gradient

    x, hot = samples("convnet"), F.one_hot(LABELS, 5)
    with Gradient(make("convnet"), "epsilon_plus") as attributor:
        expected = attributor(x, hot.double())[1]
        for given in (hot, hot.bool(), hot.int()):
            assert torch.equal(attributor(x, given)[1], expected)
            assert torch.equal(attributor(x, given[None])[1][0], expected)
