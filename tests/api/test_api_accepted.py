"""What people give: arrays, pictures, lists, no batch axis, names of classes. Taken, or refused with the way out."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import fastlrp


def conv() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 36, 5)).eval()


def dense() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)).eval()


X = torch.linspace(-1, 2, 2 * 3 * 64).reshape(2, 3, 8, 8)
NAMES = ["tabby, tabby cat", "tiger cat", "crane", "Crane", "school_bus"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "x", [X.numpy(), X.double().numpy(), X.numpy()[::-1][::-1], X.numpy().astype(">f4"), (X.numpy(),)]
)
def test_arrays(x):
    explainer = fastlrp.Explainer(conv())
    found = explainer(x, [0, 3])
    torch.testing.assert_close(found[0] if isinstance(x, tuple) else found, explainer(X, [0, 3]))


def test_an_array_is_copied():
    array = X.numpy().copy()
    record = fastlrp.Explainer(conv()).forward(array)
    before = record.relevance(0)
    array[:] = 0
    assert torch.equal(record.relevance(0), before)


class Two(nn.Module):
    def forward(self, a, b):
        return (a * b).flatten(1)


def test_arrays_among_keyword_inputs():
    found = fastlrp.explain(Two(), {"a": X.numpy(), "b": X}, 0)
    assert found["a"].shape == (2, 1, 3, 8, 8)


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (X[0], r"x \(3, 8, 8\) has no batch axis: give x\[None\]"),
        (X[0].numpy(), r"has no batch axis: give x\[None\]"),
        (X.permute(0, 2, 3, 1), r"channels are last: give x.permute\(0, 3, 1, 2\)"),
        (X[0].permute(1, 2, 0), r"no batch axis, and its channels are last: give x.permute\(2, 0, 1\)\[None\]"),
        (list(X), r"x is a list of 2, which are taken as 2 inputs of the model: for one batch give torch.stack\(x\)"),
        (list(X.numpy()), r"for one batch give torch.stack\(x\)"),
        ([X[:1], X[1:]], r"for one batch give torch.cat\(x\)"),
        ((X * 10).byte().numpy(), r"x is torch.uint8: relevance is defined for float inputs"),
        (np.array(["a"]), r"x is an array of <U1: relevance is defined for numbers"),
        ([[1.0, 2.0]], r"x is a list of numbers: .*torch.tensor\(x\)"),
    ],
)
def test_the_message_has_the_fix(x, says):
    with pytest.raises((TypeError, fastlrp.CaptureError), match=says):
        fastlrp.Explainer(conv())(x, 0)


def test_a_table_without_its_batch_axis():
    with pytest.raises(fastlrp.CaptureError, match=r"x \(6,\) has no batch axis: give x\[None\]"):
        fastlrp.Explainer(dense())(torch.rand(6), 0)


def test_an_error_that_has_another_reason_gets_no_hint():
    with pytest.raises(fastlrp.CaptureError) as caught:
        fastlrp.Explainer(conv())(torch.rand(2, 1, 8, 8), 0)
    assert "give x" not in str(caught.value)


def test_pictures():
    image = pytest.importorskip("PIL.Image").new("RGB", (8, 8))
    with pytest.raises(TypeError, match=r"x is a Pillow image.*weights.transforms\(\)\(image\)\[None\]"):
        fastlrp.Explainer(conv())(image, 0)
    with pytest.raises(TypeError, match=r"x is a list of Pillow images.*torch.stack"):
        fastlrp.Explainer(conv())([image, image], 0)


@pytest.mark.parametrize(
    ("targets", "numbers"),
    [
        ("tiger cat", 1),
        (["Tabby Cat", "tiger cat"], [0, 1]),
        (["tabby", 4, "school bus"], [0, 4, 4]),
        ({"tabby": 1.0, "tiger cat": -0.5}, {0: 1.0, 1: -0.5}),
        ([{"tabby": 1.0, 2: -1.0}, 3], [{0: 1.0, 2: -1.0}, 3]),
        (fastlrp.each(["tiger cat", "tabby"]), fastlrp.each([1, 0])),
        ("top2", "top2"),
        ("all", "all"),
    ],
)
def test_classes_by_name(targets, numbers):
    explainer = fastlrp.Explainer(conv(), labels=NAMES)
    expected = fastlrp.Explainer(conv())(X, numbers)
    torch.testing.assert_close(explainer(X, targets), expected)
    torch.testing.assert_close(copy.deepcopy(explainer)(X, targets), expected)


@pytest.mark.parametrize(
    ("targets", "says"),
    [
        (["tabbi cat"], r"no class is called 'tabbi cat': did you mean 'tabby, tabby cat'"),
        ("bus", r"no class is called 'bus': did you mean 'school_bus'"),
        (["crane"], r"the classes 2, 3 are all called 'crane': give the number"),
        (["xyzzy"], r"no class is called 'xyzzy'$"),
    ],
)
def test_unknown_names(targets, says):
    with pytest.raises(ValueError, match=says):
        fastlrp.Explainer(conv(), labels=NAMES)(X, targets)


def test_names_without_labels():
    explainer = fastlrp.Explainer(conv())
    with pytest.raises(TypeError, match=r"names the class 'tabby', and the explainer knows no names.*labels="):
        explainer(X, ["tabby"])
    with pytest.raises(TypeError, match=r"must be integers, got the text '3': write 3"):
        explainer(X, ["3"])


def test_labels_of_the_wrong_length():
    with pytest.raises(ValueError, match="labels has 4 names, and the explained output has 5 classes"):
        fastlrp.Explainer(conv(), labels=NAMES[:4])(X, 0)
    with pytest.raises(ValueError, match="labels names class 7, and the explained output has 5 classes"):
        fastlrp.Explainer(conv(), labels={7: "seven"})(X, 0)
    with pytest.raises(TypeError, match="labels must be a list of names or a dict from class to name, got str"):
        fastlrp.Explainer(conv(), labels="tabby")


def test_names_of_a_models_own_config():
    model = conv()
    model.config = SimpleNamespace(id2label={0: "a", 1: "bee"})
    explainer = fastlrp.Explainer(model)
    assert torch.equal(explainer(X, ["bee"]), explainer(X, 1))
    model.config = SimpleNamespace(id2label={0: "LABEL_0", 1: "LABEL_1"})
    assert fastlrp.Explainer(model).labels is None


@pytest.mark.parametrize("targets", [None, [None], [1, [2, 3]], object()])
def test_no_words_of_pytorch(targets):
    with pytest.raises(TypeError, match="targets must be an int, classes") as caught:
        fastlrp.Explainer(conv())(X, targets)
    for words in ("infer dtype", "too many dimensions", "cannot be interpreted"):
        assert words not in str(caught.value)
