"""What cannot be drawn is refused, with the way out."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from fastlrp import viz

MAP = torch.ones(4, 4)
GREY = np.full((4, 4, 3), 128, np.uint8)


@pytest.mark.parametrize(
    ("relevance", "error", "says"),
    [
        (
            torch.ones(2, 5, 3, 8, 8),
            ValueError,
            r"\(B, K, C, H, W\): take one sample and one target, relevance\[0, 0\]",
        ),
        (torch.ones(2, 5, 8, 8), ValueError, r"relevance\[0, 0\]; of \(N, C, H, W\) take one entry, relevance\[0\]"),
        (torch.ones(64), ValueError, r"\(64,\): reshape it"),
        (torch.tensor(1.0), ValueError, r"must be \(H, W\) or \(C, H, W\), got \(\)"),
        (np.ones((224, 224, 3)), ValueError, r"looks like \(H, W, 3\), but channels come first"),
        (torch.ones(3, 0, 4), ValueError, r"empty: \(3, 0, 4\)"),
        (torch.ones(0, 4, 4), ValueError, r"empty: \(0, 4, 4\)"),
        (torch.tensor([[1.0, float("nan")], [float("inf"), 0.0]]), ValueError, "2 NaN or infinite entries of 4"),
        (torch.tensor([[[float("inf")]], [[-float("inf")]]]), ValueError, "2 NaN or infinite entries"),
        ({"input": MAP, "3": MAP}, TypeError, r"take one of its entries \('input', '3'\)"),
        (torch.ones(2, 2, dtype=torch.complex64), TypeError, "real numbers"),
        (np.array([["a"]]), TypeError, "real numbers"),
        ([[1.0, 2.0], [3.0]], TypeError, "rows of different lengths"),
        ("digit.npy", TypeError, "got str"),
    ],
)
def test_relevance_that_is_no_map(relevance, error, says):
    for call in (viz.heatmap, lambda r: viz.overlay(r, GREY), lambda r: viz.outline(GREY, r)):
        with pytest.raises(error, match=says):
            call(relevance)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"normalize": "max"}, ValueError, "unknown normalize 'max': expected one of 'symmetric', 'absolute'"),
        ({"level": -1.0}, ValueError, "level must be a finite number >= 0"),
        ({"level": float("nan")}, ValueError, "level must be"),
        ({"level": True}, ValueError, "level must be"),
        ({"level": "big"}, ValueError, "level must be"),
        ({"level": (0, 1)}, ValueError, "is a range, which is for normalize='unaligned'"),
        ({"level": 1.0, "normalize": "unaligned"}, ValueError, r"level must be \(smallest, largest\)"),
        ({"level": (2, 1), "normalize": "unaligned"}, ValueError, r"level must be \(smallest, largest\)"),
        ({"zoom": 0}, ValueError, "zoom must be at least 1"),
        ({"zoom": 1.5}, TypeError, "zoom must be a whole number"),
        ({"zoom": True}, TypeError, "zoom must be a whole number"),
        ({"zoom": 10_000}, ValueError, "40000 x 40000 pixels is larger than"),
        ({"resample": "cubic"}, ValueError, "unknown resample 'cubic': expected one of 'nearest', 'bilinear'"),
        ({"cmap": "coldhot"}, ValueError, "unknown colour map 'coldhot': did you mean coldnhot"),
        ({"cmap": "qqqq"}, ValueError, "unknown colour map 'qqqq': fastlrp.viz.COLORMAPS lists all"),
        ({"cmap": 3}, TypeError, "a colour map is a name"),
        ({"cmap": ["red"]}, TypeError, "a list of two or more colours"),
    ],
)
def test_options_that_do_not_fit(options, error, says):
    with pytest.raises(error, match=says):
        viz.heatmap(MAP, **options)
    with pytest.raises(error, match=says):
        viz.overlay(MAP, GREY, **options)


@pytest.mark.parametrize(
    ("image", "error", "says"),
    [
        (torch.randn(3, 4, 4) * 3, ValueError, r"floats in \[0, 1\].*undo the model's normalisation \(image \* std"),
        (np.full((4, 4), 200), ValueError, "must be uint8, or floats"),
        (torch.ones(1, 3, 4, 4), ValueError, r"take one of them, image\[0\]"),
        (torch.ones(5, 4, 4), ValueError, "must have 1 or 3 channels"),
        (torch.ones(3, 0, 4), ValueError, "empty"),
        (torch.full((3, 4, 4), float("nan")), ValueError, "48 NaN or infinite"),
        (torch.ones(3, 4, 6), ValueError, "does not have the proportions of the image, 6 x 4 pixels"),
        (Image.new("RGB", (0, 0)), ValueError, "empty"),
        ("photo.png", TypeError, "real numbers, got str"),
    ],
)
def test_image_that_does_not_fit(image, error, says):
    with pytest.raises(error, match=says):
        viz.overlay(MAP, image)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, "half", True, None, float("nan")])
def test_alpha_out_of_range(alpha):
    with pytest.raises(ValueError, match=r"alpha must be a number in \[0, 1\] or 'relevance'"):
        viz.overlay(MAP, GREY, alpha=alpha)


@pytest.mark.parametrize(
    ("maps", "options", "error", "says"),
    [
        ([], {}, ValueError, "there is no map"),
        (torch.ones(0, 1, 3, 4, 4), {}, ValueError, "there is no map"),
        ([MAP], {"quantile": 0}, ValueError, r"quantile must be in \(0, 1\]"),
        ([MAP], {"quantile": 1.1}, ValueError, r"quantile must be in \(0, 1\]"),
        ([MAP, MAP / 0], {}, ValueError, "NaN or infinite"),
        (torch.ones(4), {}, ValueError, r"must be \(B, K, C, H, W\) or a list of maps, got \(4,\)"),
        (MAP, {}, ValueError, r"give its maps in a list, \[relevances\]"),
        (torch.ones(2, 4, 4), {}, ValueError, r"list\(relevances\) of several \(H, W\)"),
        (torch.ones(2, 3, 4, 4), {}, ValueError, r"list\(relevances.reshape\(-1, H, W\)\) of \(B, K, H, W\)"),
        ({"input": MAP}, {}, TypeError, "take one of its entries"),
    ],
)
def test_shared_level_of_nothing(maps, options, error, says):
    with pytest.raises(error, match=says):
        viz.shared_level(maps, **options)


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.slow
def test_importing_loads_no_library_and_drawing_no_pyplot():
    names = "('PIL', 'matplotlib', 'scipy', 'tensorboard')"
    code = (
        "import sys, torch; from fastlrp import viz\n"
        f"print([m for m in sys.modules if m.split('.')[0] in {names}])\n"
        "viz.to_image(viz.grid(torch.randn(1, 2, 4, 4)))\n"
        "print('matplotlib.pyplot' in sys.modules, len(viz.COLORMAPS) > 100)"
    )
    assert run(code).splitlines() == ["[]", "False True"]


@pytest.mark.parametrize(
    ("missing", "call", "package"),
    [
        ("PIL.Image", lambda: viz.heatmap(MAP), "pillow"),
        ("matplotlib.colors", lambda: viz.colormap("bwr"), "matplotlib"),
        ("matplotlib.figure", lambda: viz.grid(MAP[None, None]), "matplotlib"),
        ("scipy.ndimage", lambda: viz.outline(MAP), "scipy"),
    ],
)
def test_a_missing_library_is_named_with_its_extra(monkeypatch, missing, call, package):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=rf'needs {package} here: pip install "fastlrp\[viz\]"'):
        call()


def test_unknown_name_of_the_package():
    with pytest.raises(AttributeError, match="has no attribute 'heat'"):
        viz.heat  # noqa: B018
