"""Targets for areas, boxes and embeddings: by hand, and against autograd in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastlrp
from fastlrp import outputs


def test_an_area_is_where_the_class_wins():
    scores = torch.tensor([[[[1.0, 5.0], [0.0, 2.0]], [[2.0, 4.0], [1.0, 1.0]]]])  # (1, 2, 2, 2)
    assert outputs.area(scores, 1).tolist() == [[[True, False], [True, False]]]
    both = torch.cat([scores, scores.flip(1)])
    assert outputs.area(both, torch.tensor([1, 0])).tolist() == [[[True, False], [True, False]]] * 2
    with pytest.raises(ValueError, match=r"class 2 wins nowhere in sample 0: \[0, 1\] do"):
        outputs.area(torch.cat([scores, -9 + 0 * scores[:, :1]], 1), 2)
    with pytest.raises(ValueError, match=r"scores \(B, C, \*S\) with positions, got \(2, 3\)"):
        outputs.area(torch.zeros(2, 3), 0)
    with pytest.raises(ValueError, match="one for each of the 2 samples"):
        outputs.area(both, torch.tensor([1, 0, 1]))


def test_an_area_of_a_class_against_autograd():
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1)).double().eval()
    x = torch.randn(2, 2, 5, 5, dtype=torch.float64)
    point = x.clone().requires_grad_()
    scores = model(point)
    label = scores[:, :, 2, 2].argmax(1)
    mask = outputs.area(scores, label)
    own = scores.gather(1, label.view(-1, 1, 1, 1).expand(-1, 1, 5, 5))[:, 0]
    (gradient,) = torch.autograd.grad((own * mask).sum(), point)
    found = fastlrp.explain(model, x, fastlrp.each(label), "attnlrp", at=mask)
    torch.testing.assert_close(found[:, 0], gradient * x, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("cosine", [True, False])
def test_similarity_with_something_known_against_autograd(cosine):
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double().eval()
    x, known = torch.randn(2, 4, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    with fastlrp.Explainer(model, "attnlrp").forward(x) as record:
        targets = outputs.towards(record.scores, known, cosine)
        found = record.relevance(targets)
    point = x.clone().requires_grad_()
    e = model(point)
    held = e.detach().norm(dim=1, keepdim=True) * known.norm(dim=1) if cosine else 1
    similarity = (e @ known.T) / held
    torch.testing.assert_close(targets.sum(2), similarity.detach(), rtol=1e-12, atol=1e-12)
    for k in range(5):
        (gradient,) = torch.autograd.grad(similarity[:, k].sum(), point, retain_graph=True)
        torch.testing.assert_close(found[:, k], gradient * x, rtol=1e-10, atol=1e-12)
    one = outputs.towards(e.detach(), known[0], cosine)
    each = outputs.towards(e.detach(), known[:4].view(2, 2, 3), cosine)
    assert one.shape == (2, 1, 3)
    torch.testing.assert_close(one, targets[:, :1])
    torch.testing.assert_close(each[1], targets[1, 2:4])
    with pytest.raises(ValueError, match=r"got \(2, 3\) and \(4,\)"):
        outputs.towards(e, torch.zeros(4))


def test_levels_become_a_list_of_anchors():
    levels = [torch.arange(24.0).view(1, 6, 2, 2), torch.arange(6.0).view(1, 6, 1, 1)]  # Two anchors of three entries.
    found = outputs.by_anchor(levels, 3)
    assert found.shape == (1, 10, 3)
    assert found[0, 0].tolist() == [0, 4, 8]  # Place (0, 0), anchor 0: channels 0 to 2.
    assert found[0, 3].tolist() == [13, 17, 21]  # Place (0, 1), anchor 1.
    assert found[0, 9].tolist() == [3, 4, 5]
    with pytest.raises(ValueError, match=r"must be \(B, anchors \* 4, H, W\), got \(1, 6, 2, 2\)"):
        outputs.by_anchor(levels, 4)


def test_anchors_are_found_by_their_scores():
    scores = torch.tensor([[[0.1, 2.0], [3.0, -1.0], [0.0, 2.5]]])
    assert outputs.strongest(scores, 2) == [(1, 0), (2, 1)]
    probabilities = scores[0].sigmoid()
    assert outputs.anchor_of(probabilities, 1, float(probabilities[2, 1])) == 2
    with pytest.raises(ValueError, match=r"no anchor gives class 0 the probability 0\.7000"):
        outputs.anchor_of(probabilities, 0, 0.7)


def test_a_place_of_a_head_with_classes_in_front():
    """``(B, 4 + classes, anchors)``: a tuple of one number."""
    model = nn.Sequential(nn.Conv1d(2, 5, 1), nn.ReLU(), nn.Conv1d(5, 6, 1)).double().eval()
    x = torch.randn(2, 2, 7, dtype=torch.float64)
    point = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(point)[:, 4, 3].sum(), point)
    found = fastlrp.explain(model, x, 4, "attnlrp", at=(3,))
    torch.testing.assert_close(found[:, 0], gradient * x, rtol=1e-10, atol=1e-12)


def test_a_module_that_is_no_detector_is_refused():
    with pytest.raises(TypeError, match="Linear has no backbone and head"):
        outputs.BackboneAndHead(nn.Linear(1, 1))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: outputs.anchor_of(torch.full((4, 3), 0.5), 1, float("nan")), ValueError, "no anchor gives class 1"),
        (lambda: outputs.anchor_of(torch.full((4, 3), float("nan")), 1, 0.5), ValueError, "no anchor gives class 1"),
        (lambda: outputs.anchor_of(torch.rand(4, 3), -1, 0.5), IndexError, "there is no class -1"),
        (lambda: outputs.anchor_of(torch.rand(1, 4, 3), 1, 0.5), ValueError, r"got \(1, 4, 3\)"),
        (lambda: outputs.area(torch.full((1, 3, 2, 2), float("nan")), 0), ValueError, "NaN no class wins"),
        (lambda: outputs.by_anchor([], 4), ValueError, "a level at least"),
        (lambda: outputs.by_anchor([torch.rand(1, 8, 2, 2)], -4), ValueError, "a size of at least 1"),
        (lambda: outputs.by_anchor([torch.rand(1, 8, 2, 2), torch.rand(2, 8, 1, 1)], 4), ValueError, "one batch size"),
        (lambda: outputs.strongest(torch.rand(2, 3), 1), ValueError, r"scores \(B, anchors, C\)"),
        (lambda: outputs.strongest(torch.rand(1, 2, 3), 7), ValueError, "a count up to"),
        (lambda: outputs.towards(torch.rand(2, 3), torch.ones(3, dtype=torch.long)), TypeError, "floating-point"),
    ],
)
def test_bad_input_has_its_message(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()


def test_levels_of_an_empty_batch() -> None:
    assert outputs.by_anchor([torch.rand(0, 8, 2, 2), torch.rand(0, 8, 1, 1)], 4).shape == (0, 10, 4)


def test_similarity_of_long_vectors_in_float16() -> None:
    e, r = torch.full((1, 64), 200.0, dtype=torch.float16), torch.full((64,), 300.0, dtype=torch.float16)
    found = outputs.towards(e, r)
    assert bool(found.isfinite().all())
    torch.testing.assert_close(found.double().sum(), torch.tensor(1.0, dtype=torch.float64), rtol=1e-2, atol=0)
