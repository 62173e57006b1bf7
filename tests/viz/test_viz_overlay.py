"""Overlays: what is blended, with what, and how images come in."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from fastlrp import viz

# Pure colours, which are easy to say.
heatmap = partial(viz.heatmap, cmap="bwr")
overlay = partial(viz.overlay, cmap="bwr")

R = torch.tensor([[1.0, 0.0], [-1.0, 0.5]])


def test_constant_alpha_blends_colours():
    image = np.full((2, 2, 3), 100, np.uint8)
    for alpha in (0.0, 0.3, 0.5, 1.0):
        found = np.asarray(overlay(R, image, alpha=alpha)).astype(float)
        expected = alpha * np.asarray(heatmap(R)).astype(float) + (1 - alpha) * 100
        assert abs(found - expected).max() <= 1


def test_alpha_by_relevance_leaves_the_rest_of_the_image_alone():
    image = np.random.default_rng(0).integers(0, 256, (2, 2, 3), np.uint8)
    found = np.asarray(overlay(R, image, alpha="relevance"))
    np.testing.assert_array_equal(found[0, 1], image[0, 1])
    np.testing.assert_array_equal(found[0, 0], (255, 0, 0))
    np.testing.assert_array_equal(found[1, 0], (0, 0, 255))
    half = np.asarray(heatmap(R))[1, 1] * 0.5 + image[1, 1] * 0.5
    assert abs(found[1, 1] - half).max() <= 1
    # With a level, opacity is relative to it.
    weak = np.asarray(overlay(R, image, alpha="relevance", level=1000.0)).astype(int)
    assert abs(weak - image).max() <= 1


def test_zero_relevance_over_an_image():
    image = np.random.default_rng(0).integers(0, 256, (2, 2, 3), np.uint8)
    np.testing.assert_array_equal(np.asarray(overlay(torch.zeros(2, 2), image, alpha="relevance")), image)


PHOTO = np.random.default_rng(1).integers(0, 256, (2, 2, 3), np.uint8)
GREY = PHOTO[..., 0]


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (PHOTO, PHOTO),
        (Image.fromarray(PHOTO), PHOTO),
        (PHOTO / 255.0, PHOTO),
        (torch.from_numpy(PHOTO).permute(2, 0, 1), PHOTO),
        (torch.from_numpy(PHOTO).permute(2, 0, 1) / 255, PHOTO),
        ((torch.from_numpy(PHOTO).permute(2, 0, 1) / 255).requires_grad_(), PHOTO),
        (np.dstack((PHOTO, np.full((2, 2), 255, np.uint8))), PHOTO),
        (PHOTO[::-1][::-1], PHOTO),
        (GREY, np.dstack([GREY] * 3)),
        (GREY[..., None], np.dstack([GREY] * 3)),
        (torch.from_numpy(GREY)[None] / 255, np.dstack([GREY] * 3)),
        (Image.fromarray(GREY), np.dstack([GREY] * 3)),
        (Image.fromarray(GREY.astype(np.uint16) << 8), np.dstack([GREY] * 3)),
        (Image.fromarray(PHOTO).convert("RGBA"), PHOTO),
        (torch.ones(3, 2, 2) + 5e-4, np.full((2, 2, 3), 255)),
    ],
)
def test_images_of_every_kind(image, expected):
    np.testing.assert_array_equal(np.asarray(overlay(R, image, alpha=0.0)), expected)


def test_transparent_pixels_are_white():
    array = np.dstack((PHOTO, np.zeros((2, 2), np.uint8)))
    for image in (array, Image.fromarray(array)):
        assert (np.asarray(overlay(R, image, alpha=0.0)) == 255).all()


def test_grey_takes_the_colours_out_of_the_image_only():
    found = np.asarray(overlay(R, PHOTO, alpha="relevance", grey=True)).astype(int)
    assert found[0, 1].max() == found[0, 1].min()
    assert tuple(found[0, 0].tolist()) == (255, 0, 0)


def test_map_of_a_hidden_layer_is_scaled_to_the_image():
    image = np.zeros((8, 8, 3), np.uint8)
    found = np.asarray(overlay(R, image, alpha=1.0))
    np.testing.assert_array_equal(found, np.asarray(heatmap(R, zoom=4)))
    smooth = np.asarray(overlay(R, image, alpha=1.0, resample="bilinear"))
    np.testing.assert_array_equal(smooth, np.asarray(heatmap(R, zoom=4, resample="bilinear")))
    # Strides round: 28 x 38 of 224 x 300 pixels is the same picture, 28 x 28 is not.
    assert overlay(torch.ones(28, 38), np.zeros((224, 300, 3), np.uint8)).size == (300, 224)
    with pytest.raises(ValueError, match="proportions"):
        overlay(torch.ones(28, 28), np.zeros((224, 300, 3), np.uint8))


def test_zoom_enlarges_both():
    found = overlay(R, PHOTO, zoom=3)
    once = np.asarray(overlay(R, PHOTO))
    assert found.size == (6, 6)
    np.testing.assert_array_equal(np.asarray(found), once.repeat(3, 0).repeat(3, 1))
