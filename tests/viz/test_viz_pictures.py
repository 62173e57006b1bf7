"""Normalised inputs as pictures: de-normalised, stretched, or as they are, and which of it is said."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastlrp import viz

pytest.importorskip("PIL")
pytest.importorskip("matplotlib")


def normalised():
    pixels = torch.rand(3, 5, 4, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    return pixels, (pixels - mean) / std


def test_statistics_give_the_pixels_back():
    pixels, x = normalised()
    wanted = (pixels * 255).round().byte().permute(1, 2, 0).numpy()
    for statistics in ("imagenet", ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))):
        image, said = viz.picture(x, statistics)
        assert said == "de-normalised"
        assert np.abs(np.asarray(image).astype(int) - wanted).max() <= 1
    image, said = viz.picture((2 * pixels[:1] - 1), "half")
    assert np.abs(np.asarray(image)[..., 0].astype(int) - wanted[..., 0]).max() <= 1


def test_without_statistics_it_is_stretched_and_says_so():
    image, said = viz.picture(torch.tensor([[[-2.0, 0.5], [1.0, 2.0]]]))
    assert said == "stretched from −2 to 2"
    assert np.asarray(image)[..., 0].tolist() == [[0, 159], [191, 255]]
    image, said = viz.picture(torch.tensor([[[0.0, 0.5], [1.0, 0.25]]]))
    assert (np.asarray(image)[..., 0].tolist(), said) == ([[0, 128], [255, 64]], "")


def test_statistics_that_do_not_fit():
    _, x = normalised()
    with pytest.raises(ValueError, match="not the statistics"):
        viz.picture(x, (0.0, 1.0))
    with pytest.raises(ValueError, match="2 means and 1 deviations, and image has 3 channels"):
        viz.picture(x, ((0.1, 0.2), 1.0))
    with pytest.raises(ValueError, match="imagenet, half"):
        viz.picture(x, "cifar")


def test_a_grid_says_what_was_done():
    _, x = normalised()
    maps, below = np.ones((1, 1, 5, 4)), "relevance; images "
    for statistics, said in (("imagenet", "de-normalised"), (None, "stretched from")):
        figure = viz.grid(maps, images=[x], statistics=statistics, unit="relevance")
        texts = [text.get_text() for owner in (figure, *figure.axes) for text in owner.texts]
        assert any(text.startswith(below + said) for text in texts)
