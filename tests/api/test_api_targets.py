"""What a target may be, and what relevance starts from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import fastlrp
from tests.api.models import gradient_times_input, make, relative_error, samples, shared

# Measured: 2e-16 against autograd, 0 between different ways to write one target.
TIGHT = 1e-12


@pytest.fixture(scope="module")
def truth():
    """LRP-0 of all five classes by autograd, (2, 5, 3, 8, 8)."""
    return gradient_times_input(make("convnet"), samples("convnet"))


def explain(targets, **options):
    return shared("convnet", "lrp0")(samples("convnet"), targets, **options)


@pytest.mark.parametrize(
    "target",
    [
        3, np.int64(3), np.uint8(3), torch.tensor(3), [3], (3,), range(3, 4), [np.int32(3)], [torch.tensor(3)],
        np.array([3]), torch.tensor([3]), torch.tensor([3], dtype=torch.int32), torch.tensor([3], dtype=torch.uint8),
        torch.tensor([[3], [3]]), np.array([[3], [3]]), [[3], [3]], torch.tensor([0, 3, 4])[1:2],
    ],
    ids=repr,
)  # fmt: skip
def test_one_class(target, truth):
    found = explain(target)
    assert found.shape == (2, 1, 3, 8, 8)
    assert found.dtype == torch.float64
    assert relative_error(found, truth[:, 3:4]) <= TIGHT


@pytest.mark.parametrize(
    "targets", [[4, 0, 2], (4, 0, 2), range(4, -1, -2), torch.tensor([4, 0, 2]), np.array([4, 0, 2])], ids=repr
)
def test_several_classes_keep_their_order(targets, truth):
    order = [4, 2, 0] if isinstance(targets, range) else [4, 0, 2]
    assert relative_error(explain(targets), truth[:, order]) <= TIGHT


def test_classes_per_sample(truth):
    targets = torch.tensor([[4, 0, 0], [1, 3, 2]])
    expected = torch.stack([truth[0, targets[0]], truth[1, targets[1]]])
    assert relative_error(explain(targets), expected) <= TIGHT
    assert relative_error(explain(targets.numpy()), expected) <= TIGHT


def test_duplicates_get_the_same_relevance(truth):
    found = explain([1, 1, 4, 1])
    assert torch.equal(found[:, 0], found[:, 1])
    assert torch.equal(found[:, 0], found[:, 3])
    assert relative_error(found, truth[:, [1, 1, 4, 1]]) <= TIGHT


def test_all(truth):
    assert relative_error(explain("all"), truth) <= TIGHT


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top(k, truth):
    best = make("convnet")(samples("convnet")).topk(k, dim=1).indices
    expected = torch.stack([truth[b, best[b]] for b in range(2)])
    assert relative_error(explain(f"top{k}"), expected) <= TIGHT


def test_top_goes_by_sample():
    best = make("convnet")(samples("convnet", 8)).argmax(1)
    assert len(set(best.tolist())) > 1, "the samples must not agree, or a shared top-1 would pass"
    x = samples("convnet", 8)
    assert torch.equal(shared("convnet", "lrp0")(x, "top1"), shared("convnet", "lrp0")(x, best.unsqueeze(1)))


# Initial relevance


def test_relevance_shared_by_the_batch(truth):
    """A float target is the relevance itself: rows of LRP-0 scale with it, R / z times the class's own."""
    scores = make("convnet")(samples("convnet")).detach()
    initial = torch.tensor([[1.0, 0, 0, 0, 0], [0, 0, -2.0, 0, 0.5]], dtype=torch.float64)
    unit = truth / scores.view(2, 5, 1, 1, 1)
    expected = torch.einsum("kc,bcxyz->bkxyz", initial, unit)
    assert relative_error(explain(initial), expected) <= TIGHT
    assert relative_error(explain(initial.numpy()), expected) <= TIGHT
    assert relative_error(explain(initial.float()), expected) <= TIGHT, "exact in float32 too"


def test_relevance_per_sample(truth):
    scores = make("convnet")(samples("convnet")).detach()
    initial = torch.randn(2, 3, 5, dtype=torch.float64)
    expected = torch.einsum("bkc,bcxyz->bkxyz", initial, truth / scores.view(2, 5, 1, 1, 1))
    found = explain(initial)
    assert found.shape == (2, 3, 3, 8, 8)
    assert relative_error(found, expected) <= TIGHT


def test_difference_of_classes_is_the_difference_of_relevances():
    explainer, x = shared("convnet", "epsilon_plus"), samples("convnet")
    y = make("convnet")(x).detach()
    initial = torch.zeros(2, 1, 5, dtype=torch.float64)
    initial[:, 0, 1], initial[:, 0, 4] = y[:, 1], -y[:, 4]
    parts = explainer(x, [1, 4])
    assert relative_error(explainer(x, initial), parts[:, :1] - parts[:, 1:]) <= TIGHT


def test_a_given_relevance_is_not_changed():
    initial = torch.randn(2, 3, 5, dtype=torch.float64)
    kept = initial.clone()
    with shared("convnet", "lrp0").forward(samples("convnet")) as record:
        found = record.relevance(initial, layers="all")
        for relevance in found.values():
            relevance.fill_(7.0)
    assert torch.equal(initial, kept)


def test_initial_one(truth):
    scores = make("convnet")(samples("convnet")).detach()
    expected = truth / scores.view(2, 5, 1, 1, 1)
    assert relative_error(explain("all", initial="one"), expected) <= TIGHT


def test_initial_callable(truth):
    scores = make("convnet")(samples("convnet")).detach()
    expected = truth * (scores.softmax(1) / scores).view(2, 5, 1, 1, 1)
    assert relative_error(explain("all", initial=lambda y: y.softmax(1)), expected) <= TIGHT
    assert relative_error(explain([2, 0], initial=lambda y: y.softmax(1)), expected[:, [2, 0]]) <= TIGHT


def test_initial_callable_may_write_into_what_it_gets(truth):
    scores = make("convnet")(samples("convnet")).detach()
    with shared("convnet", "lrp0").forward(samples("convnet")) as record:
        assert relative_error(record.relevance("all", initial=lambda y: y.mul_(2)), 2 * truth) <= TIGHT
        assert relative_error(record.output, scores) <= TIGHT
        assert relative_error(record.relevance("all"), truth) <= TIGHT


# Outputs of other shapes


def test_segmentation_class_is_axis_one():
    explainer, x = shared("segment", "lrp0"), samples("segment")
    y = make("segment")(x).detach()
    assert y.shape == (2, 3, 3, 3)
    found = explainer(x, [2, 0])
    assert found.shape == (2, 2, 2, 6, 6)
    masks = torch.zeros(2, 2, 3, 3, 3, dtype=torch.float64)
    masks[:, 0, 2], masks[:, 1, 0] = y[:, 2], y[:, 0]
    assert relative_error(found, explainer(x, masks)) <= TIGHT
    # The relevance of a class is that of all its pixels: gradient times input of its summed map.
    point = x.clone().requires_grad_()
    for k, c in enumerate([2, 0]):
        (grad,) = torch.autograd.grad(make("segment")(point)[:, c].sum(), point)
        assert relative_error(found[:, k], grad * x) <= TIGHT


def test_segmentation_single_pixel():
    explainer, x = shared("segment", "lrp0"), samples("segment")
    point = x.clone().requires_grad_()
    y = make("segment")(point)
    (grad,) = torch.autograd.grad(y[:, 1, 2, 0].sum(), point)
    mask = torch.zeros(1, 3, 3, 3, dtype=torch.float64)
    mask[0, 1, 2, 0] = 1.0
    found = explainer(x, mask * torch.ones(2, 1, 1, 1, 1, dtype=torch.float64))
    assert relative_error(found[:, 0], grad * x / y[:, 1, 2, 0].detach().view(2, 1, 1, 1)) <= TIGHT


def test_segmentation_per_sample_and_all():
    explainer, x = shared("segment", "lrp0"), samples("segment")
    everything = explainer(x, "all")
    assert everything.shape == (2, 3, 2, 6, 6)
    found = explainer(x, torch.tensor([[2, 1], [0, 0]]))
    expected = torch.stack([everything[0, [2, 1]], everything[1, [0, 0]]])
    assert relative_error(found, expected) <= TIGHT
    with pytest.raises(ValueError, match=r"'top1' needs an output \(B, C\), got \(2, 3, 3, 3\)"):
        explainer(x, "top1")


@pytest.mark.parametrize("target", [0, [0], "all", "top1", range(1), torch.zeros(3, 1, dtype=torch.long)], ids=repr)
def test_one_score_per_sample(target):
    explainer, x = shared("score", "lrp0"), samples("score", 3)
    point = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(make("score")(point).sum(), point)
    found = explainer(x, target)
    assert found.shape == (3, 1, 4)
    assert relative_error(found[:, 0], grad * x) <= TIGHT


def test_one_score_per_sample_duplicates_and_relevance():
    explainer, x = shared("score", "lrp0"), samples("score", 3)
    once, score = explainer(x, 0), make("score")(x).detach()
    assert torch.equal(explainer(x, [0, 0]), once.expand(3, 2, 4))
    assert relative_error(explainer(x, "all", initial="one"), once / score.view(3, 1, 1)) <= TIGHT
    for initial in (torch.tensor([2.0, -1.0]), np.array([2.0, -1.0])):
        expected = torch.tensor([2.0, -1.0]).double().view(1, 2, 1) * once / score.view(3, 1, 1)
        assert relative_error(explainer(x, initial), expected) <= TIGHT
    per_sample = torch.randn(3, 2, dtype=torch.float64)
    expected = per_sample.unsqueeze(2) * once / score.view(3, 1, 1)
    assert relative_error(explainer(x, per_sample), expected) <= TIGHT


def test_one_class_only():
    model = nn.Sequential(nn.Linear(4, 1)).double().eval()
    x = samples("mlp")
    found = fastlrp.explain(model, x, "all", "lrp0")
    assert relative_error(found, (x * model[0].weight.detach()).unsqueeze(1)) <= TIGHT


def test_by_hand():
    """x = (1, 2), W = [[1, 1], [2, -1]], z = (3, 0): class 0 gives (1, 2); class 1 has nothing to give."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False)).double().eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 1.0], [2.0, -1.0]]))
    x = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    found = fastlrp.explain(model, x, "all", "lrp0")
    assert found.tolist() == [[[1.0, 2.0], [0.0, 0.0]]]
    # alpha 2, beta 1, R = 1: class 0 has no negative part; class 1 has P = 2 and N = -2.
    found = fastlrp.explain(model, x, "all", fastlrp.composites.alpha_beta(stabilizer=0.0), initial="one")
    assert found.tolist() == [[[2 / 3, 4 / 3], [2.0, -1.0]]]


# What does not fit

OUT_OF_RANGE = r"target {} is out of range: the output \(2, 5\) has 5 classes, 0 to 4"


@pytest.mark.parametrize(
    ("targets", "error", "message"),
    [
        (5, IndexError, OUT_OF_RANGE.format(5)),
        ([0, 9], IndexError, OUT_OF_RANGE.format(9)),
        (-1, IndexError, OUT_OF_RANGE.format(-1)),
        (torch.tensor([[0], [7]]), IndexError, OUT_OF_RANGE.format(7)),
        ("top6", IndexError, "'top6' asks for 6 classes, the output has 5"),
        ("top0", ValueError, "targets 'top0' is not known: use 'all' or 'top5'"),
        ("best", ValueError, "targets 'best' is not known: use 'all' or 'top5'"),
        ([], ValueError, "targets is empty: name at least one class"),
        (range(0), ValueError, "targets is empty: name at least one class"),
        (torch.zeros(2, 0, dtype=torch.long), ValueError, "targets is empty: name at least one class"),
        (torch.zeros(0, 5), ValueError, "targets is empty: give at least one initial relevance"),
        (1.0, TypeError, "targets given as classes must be integers, got torch.float32"),
        ([0.5], TypeError, "targets given as classes must be integers, got torch.float32"),
        (True, TypeError, "targets given as classes must be integers, got torch.bool"),
        (torch.tensor([True, False]), ValueError, "targets as initial relevance must be"),
        (1j, TypeError, "must be integers, got torch.complex64"),
        (None, TypeError, "targets must be an int, classes, 'all', 'top5' or initial relevance"),
        ([[1], [1, 2]], TypeError, "targets must be an int, classes, 'all', 'top5' or initial relevance"),
        ({1, 2}, TypeError, "targets must be an int, classes, 'all', 'top5' or initial relevance"),
        (torch.zeros(3, 2, dtype=torch.long), ValueError, r"must be \(B, K\) = \(2, K\), got \(3, 2\)"),
        (torch.zeros(2, 2, 2, dtype=torch.long), ValueError, r"must be \(K, 5\) or \(2, K, 5\) .*, got \(2, 2, 2\)"),
        (torch.tensor(1.0), ValueError, r"must be \(K, 5\) or \(2, K, 5\) for an output \(2, 5\), got \(\)"),
        (torch.zeros(5), ValueError, r"must be \(K, 5\) or \(2, K, 5\) for an output \(2, 5\), got \(5,\)"),
        (torch.zeros(3, 4), ValueError, r"must be \(K, 5\) or \(2, K, 5\) for an output \(2, 5\), got \(3, 4\)"),
        (torch.zeros(3, 1, 5), ValueError, r"\(2, K, 5\) for an output \(2, 5\), got \(3, 1, 5\)"),
        (torch.full((1, 5), torch.nan), ValueError, r"targets \(initial relevance\) contain NaN or infinity"),
        (torch.full((1, 5), torch.inf), ValueError, r"targets \(initial relevance\) contain NaN or infinity"),
        (torch.zeros(1, 5, device="meta"), ValueError, "targets are on meta, the model's output is on cpu"),
    ],
    ids=lambda v: repr(v) if not isinstance(v, type) else v.__name__,
)  # fmt: skip
def test_bad_targets(targets, error, message):
    with pytest.raises(error, match=message):
        explain(targets)


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        (1, IndexError, r"target 1 is out of range: the output \(2,\) has one class, 0"),
        (-1, IndexError, r"target -1 is out of range: the output \(2,\) has one class, 0"),
        ("top2", IndexError, "'top2' asks for 2 classes, the output has 1"),
        ("worst", ValueError, "targets 'worst' is not known"),
        (True, TypeError, "must be integers, got torch.bool"),
        (0.0, TypeError, "must be integers, got torch.float32"),
        (None, TypeError, "targets must be an int, classes"),
        ([], ValueError, "targets is empty"),
    ],
    ids=repr,
)
def test_bad_targets_of_one_score(target, error, message):
    with pytest.raises(error, match=message):
        shared("score", "lrp0")(samples("score"), target)


@pytest.mark.parametrize(
    ("initial", "error", "message"),
    [
        ("two", ValueError, "initial must be 'output', 'one' or a callable, got 'two'"),
        (None, TypeError, "initial must be 'output', 'one' or a callable, got NoneType"),
        (1.0, TypeError, "initial must be 'output', 'one' or a callable, got float"),
        (lambda y: y[:, 0], ValueError, r"initial\(output\) must return a tensor \(2, 5\), got \(2,\)"),
        (lambda y: y.numpy(), ValueError, r"initial\(output\) must return a tensor \(2, 5\), got ndarray"),
        (lambda y: None, ValueError, r"initial\(output\) must return a tensor \(2, 5\), got NoneType"),
        (lambda y: y / 0, ValueError, r"initial\(output\) contains NaN or infinity"),
        (lambda y: y.to("meta"), ValueError, r"initial\(output\) is on meta, the model's output is on cpu"),
    ],
)
def test_bad_initial(initial, error, message):
    with pytest.raises(error, match=message):
        explain([0, 1], initial=initial)


def test_an_error_inside_initial_is_the_users_own():
    def broken(y):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        explain(0, initial=broken)


def test_relevance_and_initial_exclude_each_other():
    with pytest.raises(ValueError, match="which is the initial relevance itself: leave `initial` out"):
        explain(torch.ones(1, 5), initial="one")
