"""Outlines: lines where the image has its edges, over the heatmap of the relevance."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastlrp import viz

pytest.importorskip("scipy")


def square(side: int = 20, low: int = 5, high: int = 15) -> np.ndarray:
    image = np.zeros((side, side))
    image[low:high, low:high] = 1.0
    return image


def inked(picture) -> np.ndarray:
    return (np.asarray(picture) == 0).all(-1)


def test_outline_of_a_square_is_its_border():
    lines = inked(viz.outline(square(), zoom=4))
    assert lines.shape == (80, 80)
    rows, columns = np.nonzero(lines)
    # The border lies between the pixels 19 and 20, and 59 and 60.
    distance = np.minimum.reduce([abs(rows - 19.5), abs(rows - 59.5), abs(columns - 19.5), abs(columns - 59.5)])
    assert distance.max() <= 2.5  # Corners are rounded by the Gaussian.
    # It goes round: every row and column from border to border is met, and the middle twice.
    assert lines[21:59].any(1).all()
    assert lines[:, 21:59].any(0).all()
    assert np.count_nonzero(lines[40]) == np.count_nonzero(lines[:, 40]) == 2


def test_outline_does_not_depend_on_brightness_contrast_or_kind():
    expected = inked(viz.outline(square()))
    assert expected.any()
    for image in (square() * 1e-3 - 7, torch.from_numpy(square()).float()[None], (square() * 255).astype(np.uint8)):
        np.testing.assert_array_equal(inked(viz.outline(image)), expected)
    colour = np.dstack([(square() * 255).astype(np.uint8)] * 3)
    np.testing.assert_array_equal(inked(viz.outline(colour)), expected)
    from PIL import Image

    np.testing.assert_array_equal(inked(viz.outline(Image.fromarray(colour))), expected)


def test_heatmap_below_the_lines():
    relevance = torch.linspace(-1, 1, 400).reshape(20, 20)
    picture = viz.outline(square(), relevance, zoom=4, cmap="jet", level=0.5)
    below = np.asarray(viz.heatmap(relevance, zoom=4, cmap="jet", level=0.5))
    lines = inked(viz.outline(square(), zoom=4))
    found = np.asarray(picture)
    np.testing.assert_array_equal(found[~lines], below[~lines])
    assert (found[lines] == 0).all()


def test_width_colour_and_smoothness():
    thin, thick = (viz.outline(square(), zoom=4, width=width, color="#00ff00") for width in (1, 3))
    green = [np.count_nonzero((np.asarray(p) == (0, 255, 0)).all(-1)) for p in (thin, thick)]
    assert green[1] > 2 * green[0] > 0
    speck = square()
    speck[2, 2] = 0.25
    sharp, smooth = (inked(viz.outline(speck, zoom=4, sigma=s, low=0.02, high=0.05)) for s in (2.0, 10.0))
    assert sharp[:14, :14].any()
    assert not smooth[:10, :10].any()


@pytest.mark.parametrize("image", [np.zeros((8, 8)), np.full((8, 8), 0.3), np.ones((1, 1)), 0.1 * np.ones((3, 7, 9))])
def test_flat_images_have_no_outline(image):
    assert not inked(viz.outline(image)).any()


def test_same_edges_as_scikit_image_where_it_is_installed():
    feature = pytest.importorskip("skimage.feature")
    from sklearn.datasets import load_digits

    from fastlrp.viz.outlines import edges

    image = np.kron(load_digits().images[0] / 16, np.ones((6, 6)))
    strong = {"low_threshold": 0.2, "high_threshold": 0.4, "use_quantiles": False}
    theirs, ours = feature.canny(image, sigma=3, **strong), edges(image, 3, 0.1, 0.2)
    near = np.pad(theirs, 1)
    near = np.any([near[1 + i : 49 + i, 1 + j : 49 + j] for i in (-1, 0, 1) for j in (-1, 0, 1)], 0)
    assert np.count_nonzero(ours[3:-3, 3:-3] & near[3:-3, 3:-3]) > 0.9 * np.count_nonzero(ours[3:-3, 3:-3])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"relevance": torch.ones(8, 8)}, "relevance is 8 x 8, the image 20 x 20"),
        ({"sigma": -1}, "sigma must be a number of pixels >= 0"),
        ({"sigma": float("nan")}, "sigma must be"),
        ({"width": 0}, "width must be a whole number"),
        ({"low": 0.5, "high": 0.2}, "0 <= low <= high <= 1"),
        ({"color": "blackish"}, "color must be a name such as 'black'"),
        ({"zoom": 1000}, "larger than 25000000 pixels"),
    ],
)
def test_options_that_do_not_fit(options, says):
    with pytest.raises(ValueError, match=says):
        viz.outline(square(), **options)


def test_images_that_do_not_fit():
    with pytest.raises(ValueError, match=r"take one of them, image\[0\]"):
        viz.outline(torch.ones(2, 3, 8, 8))
    with pytest.raises(ValueError, match="NaN or infinite"):
        viz.outline(torch.full((8, 8), float("nan")))
