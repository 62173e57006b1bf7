"""Signals as curves, tables as bars, segmentation maps over pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastlrp import viz


def test_a_curve_has_a_band_of_colour_for_each_sample():
    relevance = torch.tensor([[1.0, -2.0, 0.0], [0.5, 4.0, -4.0]])
    figure = viz.curve(torch.tensor([[0.0, 1.0, 3.0], [2.0, 2.0, 2.0]]), relevance, times=[0, 1, 3], names=["a", "$b"])
    first, second, bar = figure.axes
    assert [ax.get_ylabel() for ax in (first, second)] == ["a", "$b"]
    bands = [ax.collections[0] for ax in (first, second)]
    np.testing.assert_array_equal(np.stack([b.get_array().ravel() for b in bands]), relevance)
    assert bands[0].norm is bands[1].norm
    assert (bands[0].norm.vmin, bands[0].norm.vmax) == (-4.0, 4.0)
    np.testing.assert_allclose(bands[0].get_coordinates()[0, :, 0], [-0.5, 0.5, 2.0, 4.0])
    np.testing.assert_array_equal(first.lines[0].get_xydata(), [[0, 0], [1, 1], [3, 3]])
    assert [tick.get_text() for tick in bar.get_yticklabels()] == ["−4", "0", "+4"]
    assert viz.to_image(figure).size[0] > 700
    assert figure._repr_png_()[:4] == b"\x89PNG"


def test_one_relevance_for_all_channels():
    figure = viz.curve(np.zeros((2, 4)), np.arange(4.0))
    assert len(figure.axes) == 3
    assert len(viz.curve(np.zeros(1), np.ones(1)).axes) == 2


def test_bars_are_sorted_and_nothing_is_left_out():
    figure = viz.bars(
        [0.5, -2.0, 0.25, 1.0, -0.5], ["a", "b", "c", "d", "e"], values=[1, 2, 3, 4, 1e-5], most=3, title="t"
    )
    ax = figure.axes[0]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["b = 2", "d = 4", "a = 1", "2 others"]
    assert [bar.get_width() for bar in ax.patches] == [-2.0, 1.0, 0.5, -0.25]
    assert {text.get_text() for text in ax.texts} == {"−2", "+1", "+0.5", "−0.25"}
    assert ax.get_xlabel() == "relevance; all features together −0.75"
    red, blue = viz.colormap("soft")(1.0), viz.colormap("soft")(0.0)
    assert [bar.get_facecolor() for bar in ax.patches] == [blue, red, red, blue]


def test_segments_tint_classes_and_leave_the_background():
    classes = torch.tensor([[0, 0, 0, 0], [0, 0, 2, 2], [0, 0, 2, 2]])
    found = np.asarray(viz.segments(classes, np.full((6, 8), 100, np.uint8), alpha=0.5, colors={2: "#ff0000"}))
    assert found.shape == (6, 8, 3)
    assert found[0, 0].tolist() == [100, 100, 100]
    assert found[4, 6].tolist() == [178, 50, 50]
    assert found[3, 4].tolist() == [255, 255, 255]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: viz.curve(np.zeros((2, 3, 4)), np.zeros(4)), r"signal must be \(T,\) or \(C, T\), got \(2, 3, 4\)"),
        (
            lambda: viz.curve(np.zeros(3), np.zeros(4)),
            r"relevance must be of the signal's shape \(1, 3\), got \(1, 4\)",
        ),
        (lambda: viz.curve(np.zeros(3), np.zeros(3), times=[0, 2, 1]), "times must be 3 ascending numbers"),
        (lambda: viz.curve(np.zeros(3), [0, np.nan, 0]), "relevance has 1 NaN"),
        (lambda: viz.bars(np.zeros((2, 2))), r"relevance must be \(N,\)"),
        (lambda: viz.bars(np.zeros(2), ["a"]), "names must be 2, one for each feature, got 1"),
        (lambda: viz.bars(np.zeros(2), most=0), "most must be a whole number"),
        (lambda: viz.segments([[0.5]], np.zeros((1, 1))), r"classes must be \(H, W\) whole numbers"),
    ],
)
def test_what_does_not_fit(call, says):
    with pytest.raises(ValueError, match=says):
        call()
