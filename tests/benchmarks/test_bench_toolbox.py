"""The LRP Toolbox's procedure, written again, gives the Toolbox's numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fastlrp
from benchmarks import toolbox
from benchmarks.models import lenet5
from benchmarks.toolbox_rounds import toolbox_rules
from tests import goldens


def relevance(network, variant, X, classes=10):
    Y = toolbox.forward(network, X)
    found = []
    for k in range(classes):
        R = np.zeros_like(Y)
        R[:, k] = Y[:, k]
        found.append(toolbox.lrp(network, R, variant))
    return Y, np.stack(found, 1)


@goldens.needs_goldens
@pytest.mark.parametrize("variant", list(toolbox.VARIANTS))
def test_lenet5(variant):
    expected = goldens.load("lrp_toolbox/lenet5_mnist_relevance.npz")
    network = toolbox.read(toolbox.golden("LeNet-5.txt"))
    X = toolbox.digits(3)
    Y, found = relevance(network, variant, X)
    assert np.abs(Y - expected["logits"][:3]).max() < 1e-5
    golden = expected[variant][:3]
    # The file is float32; measured: 2.7e-8.
    assert np.linalg.norm(found[..., 0] - golden) <= 5e-8 * np.linalg.norm(golden)
    model = lenet5(network, torch.float64)
    ours = fastlrp.explain(model, torch.from_numpy(X.transpose(0, 3, 1, 2).copy()), "all", toolbox_rules(variant))
    # Measured: 5e-14.
    assert np.linalg.norm(found[..., 0] - ours[:, :, 0].numpy()) <= 1e-12 * np.linalg.norm(golden)


def test_absent_goldens_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(toolbox, "GOLDENS", tmp_path)
    with pytest.raises(toolbox.GoldensMissingError, match=r"no LeNet-5.txt in ../shared/goldens/lrp_toolbox"):
        toolbox.golden("LeNet-5.txt")


@pytest.mark.parametrize("aware", [False, True])
def test_linear_fractions(aware):
    layer = toolbox.Linear(np.array([[3.0, 5.0], [4.0, 6.0]]), np.array([7.0, 8.0]))
    assert layer.forward(np.array([[1.0, 2.0]]), aware).tolist() == [[18, 25]]
    found = layer.lrp(np.array([[1 / 3, 2 / 3]]), 0.0, 0.0)
    assert np.allclose(found, [[17 / 90, 316 / 675]], rtol=1e-14)


def test_what_lrp_aware_keeps_changes_nothing():
    rng = np.random.default_rng(0)
    layer = toolbox.Convolution(rng.normal(size=(2, 3, 2, 4)), rng.normal(size=4), (2, 1))
    X, R = rng.normal(size=(2, 6, 5, 2)), rng.normal(size=(2, 3, 3, 4))
    plain = layer.forward(X), layer.lrp(R, 0.1, 0.1)
    aware = layer.forward(X, lrp_aware=True), layer.lrp(R, 0.1, 0.1)
    assert layer.Z.shape == (2, 3, 3, 2, 3, 2, 4)
    for a, b in zip(plain, aware, strict=True):
        assert np.allclose(a, b, rtol=1e-12)
    layer.clean()
    assert not hasattr(layer, "Z")


def test_equal_winners_share():
    layer = toolbox.MaxPool((1, 2), (1, 2))
    layer.forward(np.array([2.0, 2.0, 1.0, 3.0]).reshape(1, 1, 4, 1))
    found = layer.lrp(np.array([1.0, 5.0]).reshape(1, 1, 2, 1), 0.0, 0.0)
    assert found.ravel().tolist() == [0.5, 0.5, 0.0, 5.0]


def test_text_format(tmp_path):
    (tmp_path / "net.txt").write_text("Linear 2 1\n1 2\n3\nRect\nMaxPool 2 2 2 2\nSoftMax\n\n")
    linear, rect, pool = toolbox.read(tmp_path / "net.txt")
    assert linear.weight.tolist() == [[1], [2]]
    assert linear.bias.tolist() == [3]
    assert isinstance(rect, toolbox.Rect)
    assert (pool.size, pool.stride) == ((2, 2), (2, 2))
    (tmp_path / "odd.txt").write_text("Spiral 1\n")
    with pytest.raises(ValueError, match=r"odd\.txt: no layer of kind 'Spiral'"):
        toolbox.read(tmp_path / "odd.txt")
