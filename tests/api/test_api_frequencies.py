"""Relevance of frequencies: the transform as a first layer, by hand, by matrices and by an explainer of the whole."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import fastlrp
from fastlrp import frequencies
from fastlrp.frequencies import FromFrequencies, in_frequencies, spectrum


def network(channels: int, length: int) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv1d(channels, 4, 5), nn.ReLU(), nn.Flatten(), nn.Linear(4 * (length - 4), 3)
    return nn.Sequential(*layers).double().eval()


@pytest.mark.parametrize("length", [8, 9])
def test_the_transform_as_a_matrix(length):
    """``x_n = sum_k a_k cos(2 pi k n / T) - b_k sin(2 pi k n / T)``, each frequency but 0 and the half rate twice."""
    x = torch.randn(2, 1, length).double()
    relevance = torch.randn(2, 3, 1, length).double()
    n, k = torch.arange(length), torch.arange(length // 2 + 1)
    angle = 2 * math.pi * (n[:, None] * k).double() / length
    times = torch.where((k == 0) | (2 * k == length), 1.0, 2.0) / length
    matrix = torch.stack([angle.cos() * times, -angle.sin() * times], -1)  # (T, F, 2)
    z = spectrum(x)
    torch.testing.assert_close(torch.einsum("nkp,bckp->bcn", matrix, z), x)
    expected = z.unsqueeze(1) * torch.einsum("nkp,btcn->btckp", matrix, relevance / x.unsqueeze(1))
    torch.testing.assert_close(in_frequencies(x, relevance, stabilizer=0.0, parts=True), expected)
    torch.testing.assert_close(in_frequencies(x, relevance, stabilizer=0.0), expected.sum(-1))


def test_one_wave_by_hand():
    """A cosine of two periods and an offset of 3: relevance equal to the signal is shared by their sums of squares."""
    n = torch.arange(8).double()
    x = (3 + 2 * torch.cos(2 * math.pi * 2 * n / 8))[None]
    found = in_frequencies(x, x.square(), stabilizer=0.0)
    torch.testing.assert_close(found, torch.tensor([[8 * 9.0, 0.0, 8 * 2.0, 0.0, 0.0]]).double())


@pytest.mark.parametrize("window", [None, 8, 7, torch.ones(6)])
@pytest.mark.parametrize("channels", [1, 2])
def test_conserves_and_is_the_explanation_of_the_whole(window, channels):
    window = window.double() if isinstance(window, torch.Tensor) else window
    model, x = network(channels, 24), torch.randn(3, channels, 24).double()
    samples = fastlrp.explain(model, x, "all", "lrp0")
    found = in_frequencies(x, samples, window=window, stabilizer=0.0)
    torch.testing.assert_close(found.flatten(2).sum(2), samples.flatten(2).sum(2), rtol=1e-8, atol=1e-9)
    inspected = fastlrp.Explainer(FromFrequencies(model, 24, window), "lrp0")
    z = spectrum(x, window)
    whole = inspected(z, "all")
    torch.testing.assert_close(whole.sum(-1), found, rtol=1e-6, atol=1e-8)
    assert inspected.verify(z, "all").ok
    torch.testing.assert_close(inspected(z[1:2], "all"), whole[1:2])
    with torch.no_grad():
        torch.testing.assert_close(inspected.forward(z).scores, model(x))


@pytest.mark.parametrize("window", [None, 8, 7, torch.ones(6, dtype=torch.float64)])
def test_in_inference_mode(window):
    x, relevance = torch.randn(2, 24).double(), torch.randn(2, 3, 24).double()
    expected = in_frequencies(x, relevance, window)
    with torch.inference_mode():
        assert torch.equal(in_frequencies(x, relevance, window), expected)
        assert torch.equal(in_frequencies(x.clone(), relevance.clone(), window), expected)


def test_shapes_and_what_is_kept():
    x = torch.randn(2, 16)
    relevance = torch.randn(2, 16)
    assert in_frequencies(x, relevance).shape == (2, 9)
    assert in_frequencies(x, relevance, window=8, hop=4).shape == (2, 5, 5)
    assert in_frequencies(x, relevance[:, None], window=8, parts=True).shape == (2, 1, 5, 9, 2)
    zero = torch.zeros(1, 4)
    assert not in_frequencies(zero, torch.ones(1, 4), stabilizer=0.0).any()
    assert not in_frequencies(zero, torch.ones(1, 4)).any()


BAD = {
    "relevance must be .*got": lambda x: in_frequencies(x, torch.ones(2, 1, 15)),
    "relevance must be floats": lambda x: in_frequencies(x, torch.ones(2, 16, dtype=torch.int64)),
    "a signal must be floats": lambda x: spectrum(x.long()),
    "window of 17": lambda x: spectrum(x, 17),
    "leave samples out": lambda x: spectrum(x, 8, 8),
    "hop= is the way": lambda x: spectrum(x, hop=3),
    "a hop of 0": lambda x: spectrum(x, 8, 0),
    "window must be floats": lambda x: spectrum(x, "hann"),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message):
    with pytest.raises((ValueError, TypeError), match=message):
        BAD[message](torch.randn(2, 16))


def test_a_public_module():
    assert fastlrp.frequencies is frequencies
    assert set(frequencies.__all__) == {"FromFrequencies", "in_frequencies", "spectrum"}
