"""A figure as the last line of a notebook's cell."""

from __future__ import annotations

import io
import pickle

import numpy as np
from PIL import Image

from fastlrp import viz


def test_a_grid_shows_itself_without_pyplot():
    figure = viz.grid(np.linspace(-1, 1, 32).reshape(1, 2, 4, 4))
    picture = Image.open(io.BytesIO(figure._repr_png_()))
    assert np.array_equal(np.asarray(picture.convert("RGB")), np.asarray(viz.to_image(figure)))
    assert pickle.loads(pickle.dumps(figure))._repr_png_()[:4] == b"\x89PNG"
