"""Colour maps: the looks that people know, by name."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest

from fastlrp import viz
from fastlrp.viz.colors import DIVERGING, SEQUENTIAL, is_diverging, table
from tests.torchvision_models import import_models


def at(name: str, *places: float) -> list[tuple[float, ...]]:
    """Colours in [0, 1], two digits."""
    return [tuple(np.round(viz.colormap(name)(place)[:3], 2).tolist()) for place in places]


def test_every_listed_name_is_a_colour_map():
    assert set(matplotlib.colormaps) <= set(viz.COLORMAPS)
    assert len(set(viz.COLORMAPS)) == len(viz.COLORMAPS)
    for name in viz.COLORMAPS:
        assert isinstance(viz.colormap(name), matplotlib.colors.Colormap), name
        assert table(name).shape == (255, 3)


@pytest.mark.parametrize("name", [*SEQUENTIAL, *DIVERGING])
def test_zennit_and_toolbox_by_short_name_and_reversed(name):
    forward, short = table(name), name.partition(":")[2]
    np.testing.assert_array_equal(table(f"{name}_r"), forward[::-1])
    if short in matplotlib.colormaps:
        np.testing.assert_array_equal(table(short), table(matplotlib.colormaps[short]))
    else:
        np.testing.assert_array_equal(table(short), forward)


@pytest.mark.parametrize("name", [name for name in (*SEQUENTIAL, *DIVERGING) if name.startswith("zennit:")])
def test_zennit_looks_the_same_there(name):
    import_models()  # Which zennit imports.
    image = pytest.importorskip("zennit.image", exc_type=ImportError)
    theirs = image.palette(name.partition(":")[2]).astype(int)[np.round(np.linspace(0, 255, 255)).astype(int)]
    # The middle is the colour of index 128 there and of 127.5 here: 3 of 255 on the steepest slope, 6 per index.
    assert abs(table(name).astype(int) - theirs).max() <= 7
    assert set(image.CMAPS) <= {n.partition(":")[2] for n in (*SEQUENTIAL, *DIVERGING)}


def test_toolbox_by_hand():
    # -1, 0, 1 of gray_red: blue, gray of 0.8, red.
    assert at("gray-red", 0.0, 1.0) == [(0, 0, 1), (1, 0, 0)]
    # gray_red2 at 0.3 and 1: (0.9, 0.4, 0.4), (0.4, 0, 0).
    assert at("gray-red2", 0.0, 1.0) == [(0, 0, 0.4), (0.4, 0, 0)]
    np.testing.assert_allclose(table("gray-red2")[127 + 38] / 255, (0.9, 0.4, 0.4), atol=0.01)
    # black_firered at 0.25, 0.5, 1: red, yellow, white; blue, cyan, white on the other side.
    np.testing.assert_array_equal(table("black-firered")[[0, 127, 254]], [[255] * 3, [0] * 3, [255] * 3])
    np.testing.assert_allclose(table("black-firered")[[95, 159]] / 255, [(0, 0, 1), (1, 0, 0)], atol=0.02)
    np.testing.assert_allclose(table("black-firered")[[64, 190]] / 255, [(0, 1, 1), (1, 1, 0)], atol=0.02)
    assert at("black-green", 0.0, 1.0) == [(0, 0, 1), (0, 1, 0)]
    assert at("blue-black-yellow", 0.0, 1.0) == [(0, 0, 1), (1, 1, 0)]


NEUTRAL = {
    "bwr": 255, "zennit:bwr": 255, "france": 255, "zennit:seismic": 208, "coolio": 208, "coleus": 208, "coldnhot": 0,
    "gray-red": 204, "gray-red2": 230, "black-green": 0, "black-firered": 0, "blue-black-yellow": 0, "seismic": 255,
}  # fmt: skip


@pytest.mark.parametrize(("name", "grey"), NEUTRAL.items())
def test_the_middle_is_exactly_neutral(name, grey):
    assert viz.heatmap([[0.0, 1.0]], cmap=name).getpixel((0, 0)) == (grey,) * 3
    assert viz.heatmap([[0.0, 1.0]], cmap=name, normalize="absolute").getpixel((0, 0)) == (grey,) * 3
    assert is_diverging(name)
    assert is_diverging(viz.colormap(name))


def test_own_colours_and_matplotlib_objects():
    assert viz.heatmap([[-1.0, 0.0, 1.0]], cmap=["green", "white", "#800080"]).getpixel((2, 0)) == (128, 0, 128)
    viridis = matplotlib.colormaps["viridis"]
    assert viz.heatmap([[1.0, -1.0]], cmap=viridis).tobytes() == viz.heatmap([[1.0, -1.0]], cmap="viridis").tobytes()
    assert not is_diverging("hot")
    assert not is_diverging(["red", "blue"])


def test_table_cannot_be_changed_by_mistake():
    with pytest.raises(ValueError, match="read-only"):
        table("bwr")[0] = 0
