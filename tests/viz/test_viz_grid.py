"""Grids: the right map in the right cell, labels, scales, and a colour bar that says what a unit is."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from matplotlib.image import AxesImage
from matplotlib.text import Text
from torch import nn

import fastlrp
from fastlrp import viz


def texts(figure) -> list[str]:
    return [t.get_text() for t in figure.findobj(Text) if t.get_text()]


def cells(figure) -> list[np.ndarray]:
    """The pictures, row by row, ``(H, W, 4)``."""
    found = [image for image in figure.axes[0].images if isinstance(image, AxesImage)]
    middles = [image.get_extent() for image in found]
    places = [(round(bottom + top), left) for left, _, bottom, top in middles]
    return [found[i].get_array() for i in sorted(range(len(found)), key=lambda i: places[i])]


def bar(figure) -> tuple[list[float], list[str]]:
    axes = figure.axes[1]
    return list(axes.get_xticks()), [t.get_text() for t in axes.get_xticklabels()]


def rgb(image) -> np.ndarray:
    return np.asarray(image.convert("RGB"))


def boxes(figure) -> list:
    renderer = figure.canvas.get_renderer()
    return [
        t.get_window_extent(renderer)
        for t in figure.findobj(Text)
        if t.get_text().strip() and t.get_visible() and not (t.axes is not None and t is t.axes.title)
    ]


def assert_legible(figure):
    """Every text is inside of the figure, and no two of them overlap."""
    viz.to_image(figure)
    found, (width, height) = boxes(figure), figure.canvas.get_width_height()
    for i, box in enumerate(found):
        assert box.x0 >= 0, texts(figure)[i]
        assert box.x1 <= width, texts(figure)[i]
        assert box.y0 >= 0, texts(figure)[i]
        assert box.y1 <= height, texts(figure)[i]
        for other in found[i + 1 :]:
            apart = box.x1 <= other.x0 + 1 or other.x1 <= box.x0 + 1 or box.y1 <= other.y0 + 1 or other.y1 <= box.y0 + 1
            assert apart, (box, other)


def test_samples_by_targets():
    torch.manual_seed(0)
    relevance = torch.randn(2, 3, 4, 5, 5)
    scores = torch.tensor([[1.5, -2.0, 0.25], [0.0, 10.0, -0.125]])
    figure = viz.grid(
        relevance,
        images=torch.rand(2, 3, 5, 5),
        row_labels=["cat.jpg", "dog.jpg"],
        column_labels=["tabby", "beagle", "a $5 bill, y_1"],
        titles=scores,
        title="Two photographs",
        quantile=1.0,
    )
    found = texts(figure)
    for text in ("cat.jpg", "dog.jpg", "image", "tabby", "beagle", "a $5 bill, y_1", "Two photographs", viz.UNIT):
        assert text in found
    for text in ("+1.50", "−2.00", "+0.25", "+0.00", "+10.00"):
        assert text in found
    level = viz.shared_level(relevance)
    drawn = cells(figure)
    assert len(drawn) == 2 * 4
    for sample in range(2):
        for target in range(3):
            expected = np.asarray(viz.heatmap(relevance[sample, target], level=level))
            np.testing.assert_array_equal(drawn[sample * 4 + 1 + target][..., :3], expected)
    assert bar(figure) == ([-level, 0.0, level], [f"−{level:.2g}", "0", f"{level:+.2g}"])
    assert_legible(figure)


def test_colours_of_the_bar_are_those_of_the_maps():
    figure = viz.grid(torch.tensor([[[[2.0, 0.0, -2.0]]]]), cell=64)
    picture = rgb(viz.to_image(figure)).astype(int)
    axes = figure.axes[1].get_window_extent()
    row = picture[picture.shape[0] - int((axes.y0 + axes.y1) / 2), int(axes.x0) + 2 : int(axes.x1) - 2]
    assert abs(row[0] - (0x1D, 0x4F, 0x8F)).max() < 8
    assert abs(row[-1] - (0xA6, 0x24, 0x1D)).max() < 8
    assert row[len(row) // 2].min() > 247


@pytest.mark.parametrize(
    ("scale", "normalize", "expected"),
    [
        ("shared", "symmetric", ["+8", "−8"]),
        ("row", "symmetric", ["±2", "±8", "max", "−max"]),
        ("column", "symmetric", ["±4", "±8"]),
        ("cell", "symmetric", ["±1", "±2", "±4", "±8"]),
        ("cell", "absolute", ["≤ 1", "≤ 2", "≤ 4", "≤ 8", "max"]),
        ("shared", "absolute", ["0", "8"]),
        ("row", "unaligned", ["−2 … 0", "0 … 8", "min", "max"]),
        ("shared", "unaligned", ["−2", "+8", "0"]),
    ],
)
def test_scales(scale, normalize, expected):
    relevance = torch.zeros(2, 2, 1, 2)
    relevance[..., 0] = torch.tensor([[-1.0, -2.0], [4.0, 8.0]]).view(2, 2, 1)
    figure = viz.grid(relevance, scale=scale, normalize=normalize)
    found = texts(figure)
    assert set(expected) <= set(found)
    assert (f"each {scale} has its own scale" in found) == (scale != "shared")
    groups = {
        "shared": [[0, 1, 2, 3]],
        "row": [[0, 1], [2, 3]],
        "column": [[0, 2], [1, 3]],
        "cell": [[0], [1], [2], [3]],
    }
    drawn, maps = cells(figure), relevance.reshape(4, 1, 2)
    for group in groups[scale]:
        level = viz.shared_level(list(maps[group]))
        if normalize == "unaligned":
            level = float(maps[group].min()), float(maps[group].max())
        for i in group:
            image = viz.heatmap(maps[i], normalize=normalize, level=level)
            np.testing.assert_array_equal(drawn[i][..., :3], np.asarray(image))
    assert_legible(figure)


def test_scales_stay_readable_beside_small_cells_and_long_captions():
    relevance = torch.arange(1.0, 5.0).view(2, 2, 1, 1)
    assert {"±2", "±4"} <= set(texts(viz.grid(relevance, scale="row", cell=16)))
    figure = viz.grid(relevance, scale="cell", titles=[["two words here and more", "b"], ["c", "d"]], cell=64)
    assert {"±1", "±2", "±3", "±4"} <= set(texts(figure))
    assert_legible(figure)


def test_level_and_quantile_show_that_something_lies_beyond():
    relevance = torch.cat((torch.ones(1, 1, 1, 99), torch.full((1, 1, 1, 1), 50.0)), 3)
    figure = viz.grid(relevance, quantile=0.9, cell=64)
    assert bar(figure)[1] == ["−1", "0", "+1"]
    clipped, whole = figure.axes[1], viz.grid(relevance, cell=64).axes[1]
    arrows = [len([p for p in axes.patches if p.get_visible()]) for axes in (clipped, whole)]
    assert arrows[0] == arrows[1] + 2
    assert bar(viz.grid(relevance, level=5.0))[1] == ["−5", "0", "+5"]


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(6 * 4 * 2, 10), nn.ReLU(), nn.Linear(10, 7),
    ).eval()  # fmt: skip


def test_targets_by_layers_from_a_record():
    torch.manual_seed(0)
    x = torch.rand(2, 3, 12, 8)
    layers = fastlrp.Explainer(network(), "epsilon")(x, [1, 3], layers=["1", "3", "7"])
    figure = viz.grid(layers, sample=1, images=x[1], quantile=1.0)
    found = texts(figure)
    for text in ("input", "3×12×8", "1", "4×12×8", "3", "6×4×2", "7", "10", "output", "targets[0]", "targets[1]"):
        assert text in found
    drawn = cells(figure)
    assert len(drawn) == 2 * 3 + 1  # One image, in the first row; ten features and seven classes are bars.
    assert [c.shape[:2] for c in drawn[:4]] == [(12, 8), (12, 8), (12, 8), (4, 2)]
    for position, name in enumerate(["input", "1", "3"]):
        level = viz.shared_level(list(layers[name][1]))
        np.testing.assert_array_equal(
            drawn[1 + position][..., :3], np.asarray(viz.heatmap(layers[name][1, 0], level=level))
        )
    values, level = layers["7"][1, 0].numpy(), float(layers["7"][1].abs().max())
    expected = np.asarray(viz.heatmap(values[None], level=level))[0] / 255
    bars = [patch for patch in figure.axes[0].patches if patch.get_fill()][:10]
    np.testing.assert_allclose([bar.get_facecolor()[:3] for bar in bars], expected)
    sizes = np.array([bar.get_height() for bar in bars])
    np.testing.assert_allclose(sizes / sizes.max() * np.abs(values).max(), np.abs(values), atol=1e-6)
    assert_legible(figure)


def test_many_entries_without_axes_of_space_are_a_block():
    values = torch.randn(1, 1, 40)
    (drawn,) = cells(viz.grid({"input": values}, quantile=1.0))
    # 40 entries in a block of 6 x 7: what is left over is transparent.
    assert drawn.shape[:2] == (6, 7)
    assert (drawn[..., 3] == 255).sum() == 40
    expected = np.asarray(viz.heatmap(values[0], level=float(values.abs().max())))[0]
    np.testing.assert_array_equal(drawn[..., :3].reshape(-1, 3)[:40], expected)


def test_rows_of_anything():
    r = torch.randn(4, 6)
    over = viz.overlay(r, np.zeros((4, 6, 3), np.uint8))
    figure = viz.grid([[r, over], [None, r * 2]], column_labels=["relevance", "overlay"], row_labels=["a", "b"])
    drawn = cells(figure)
    np.testing.assert_array_equal(drawn[0][..., :3], np.asarray(viz.heatmap(r, level=float((2 * r).abs().max()))))
    np.testing.assert_array_equal(drawn[1][..., :3], np.asarray(over))
    assert len(drawn) == 3
    only_pictures = viz.grid([[over]])
    assert len(only_pictures.axes) == 1, "no scale, no colour bar"
    assert len(viz.grid(r[None, None], colorbar=False).axes) == 1
    assert_legible(figure)


def test_cells_keep_proportions_and_do_not_overlap():
    figure = viz.grid([[torch.ones(2, 8), torch.ones(8, 2)], [torch.ones(1, 1), torch.ones(3, 6)]], cell=80)
    extents = [image.get_extent() for image in figure.axes[0].images]
    sizes = [(round(x1 - x0), round(bottom - top)) for x0, x1, bottom, top in extents]
    assert sizes == [(80, 20), (20, 80), (80, 80), (80, 40)]
    # A row of flat maps only is as flat as they are.
    flat, high = viz.grid(torch.ones(2, 2, 2, 8)), viz.grid(torch.ones(2, 2, 8, 8))
    assert flat.get_figheight() < high.get_figheight() - 1


@pytest.mark.filterwarnings("ignore:Glyph")
def test_long_labels_are_wrapped_or_cut():
    names = ["American Staffordshire terrier, Staffordshire terrier", "Supercalifragilisticexpialidocious", "", "日"]
    layers = {"features.denseblock1.denselayer1.conv1": torch.ones(1, 1, 2, 2)}
    figure = viz.grid(torch.ones(1, 4, 4, 4), column_labels=names, row_labels=["a folder/with a long name.jpg" * 3])
    assert_legible(figure)
    assert any(t.endswith("…") for t in texts(figure))
    assert any(t.startswith("…") and t.endswith("conv1") for t in texts(viz.grid(layers)))
    narrow = viz.grid(
        torch.ones(1, 1, 4, 4), title="A title that is much wider than the one cell below it " * 3, cell=16
    )
    assert_legible(narrow)


def test_maps_of_zero_and_of_one_pixel():
    for normalize in ("symmetric", "absolute", "unaligned"):
        figure = viz.grid(torch.zeros(1, 2, 1, 1), normalize=normalize)
        assert all((c == 255).all() for c in cells(figure))
        assert_legible(figure)


@pytest.mark.slow
def test_figures_are_made_in_threads():
    torch.manual_seed(0)
    maps = [torch.randn(2, 3, 8, 8) for _ in range(8)]
    names = ["one", "two", "a $ b"]

    def draw(relevance):
        return viz.to_image(viz.grid(relevance, column_labels=names, titles=relevance[:, :, 0, 0])).tobytes()

    alone = [draw(relevance) for relevance in maps]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(draw, maps)) == alone


R = torch.ones(2, 3, 4, 4)


@pytest.mark.parametrize(
    ("relevance", "options", "error", "says"),
    [
        (
            torch.ones(3, 4, 4),
            {},
            ValueError,
            r"for one sample give relevance\[None\]; one map, \(C, H, W\), is drawn by viz.heatmap",
        ),
        (torch.ones(4, 4), {}, ValueError, r"must be \(B, K, H, W\) or \(B, K, C, H, W\)"),
        (torch.ones(0, 3, 4, 4), {}, ValueError, "empty"),
        (R / 0, {}, ValueError, "96 NaN or infinite"),
        (None, {}, TypeError, "a dict from layer to"),
        ([], {}, TypeError, "a list of rows of maps"),
        ([[]], {}, ValueError, "nothing in them"),
        ([R[0, 0]], {}, TypeError, "a list of rows"),
        ([[R]], {}, ValueError, r"relevance\[0\]\[0\] must be \(H, W\)"),
        ({}, {}, ValueError, "at least one layer"),
        ({"a": R, "b": R[:, :2]}, {}, ValueError, r"same number of targets in each layer, got \{'a': 3, 'b': 2\}"),
        ({"a": torch.ones(2)}, {}, ValueError, r"relevance\['a'\] must be \(B, K, N\)"),
        ({"input": {"left": R}}, {}, TypeError, r"relevance\['input'\] is a dict"),
        ({"a": R}, {"sample": 2}, IndexError, "sample 2 is out of range: .* has 2 samples"),
        (R, {"row_labels": ["a"]}, ValueError, "row_labels must be 2, one each, got 1"),
        (R, {"column_labels": "abc"}, ValueError, "column_labels must be 3, one each, got one text"),
        (R, {"titles": torch.ones(3, 2)}, ValueError, "titles must be 2 rows of 3"),
        (R, {"titles": ["a", "b"]}, ValueError, "titles must be 2 rows of 3"),
        (R, {"images": torch.rand(3, 3, 4, 4)}, ValueError, "images must be 2, one for each row, got 3"),
        (R, {"scale": "all"}, ValueError, "unknown scale 'all': expected one of 'shared', 'row'"),
        (R, {"cell": 4}, ValueError, "cell must be a whole number of at least 16"),
        (R, {"quantile": 2}, ValueError, "quantile must be"),
        (R, {"cell": 8000}, ValueError, "take fewer samples or targets"),
        (R, {"cmap": "nope"}, ValueError, "unknown colour map"),
    ],
)
def test_what_does_not_fit(relevance, options, error, says):
    with pytest.raises(error, match=says):
        viz.grid(relevance, **options)


def test_to_image_takes_figures_only():
    with pytest.raises(TypeError, match="must be a matplotlib figure, got Image"):
        viz.to_image(viz.heatmap(R[0, 0]))
    figure = viz.grid(R)
    once, twice = viz.to_image(figure), viz.to_image(figure, dpi=200)
    assert twice.size == (once.width * 2, once.height * 2)
    assert figure.dpi == 100


def test_one_in_a_hundred_lies_beyond_unless_told_otherwise():
    values = torch.zeros(1, 1, 20, 50)
    values.view(-1)[:500] = torch.arange(1.0, 501.0)
    # Of 500 entries that are not zero, index ceil(0.99 * 499) = 495 of the sorted ones: 496. Four of 1000 are larger.
    figure = viz.grid(values * 1e-6)
    assert bar(figure)[1] == ["−5×10⁻⁴", "0", "+5×10⁻⁴"]
    assert bar(figure)[0] == pytest.approx([-496e-6, 0, 496e-6])
    assert "0.4\u2009% of the entries lie beyond the scale" in texts(figure)
    assert_legible(figure)
    assert not any("beyond" in text for text in texts(viz.grid(values, quantile=1.0)))
    few = viz.grid(torch.tensor([[[[1.0, -8.0, 0.0]]]]))
    assert bar(few)[1] == ["−8", "0", "+8"]


@pytest.mark.parametrize(
    ("value", "text", "signed", "score"),
    [
        (0.0, "0", "0", "+0.00"),
        (-0.25, "−0.25", "−0.25", "−0.25"),
        (1234.0, "1.2×10³", "+1.2×10³", "+1234.00"),
        (-0.00012, "−1.2×10⁻⁴", "−1.2×10⁻⁴", "−1.2×10⁻⁴"),
        (3e-12, "3×10⁻¹²", "+3×10⁻¹²", "+3×10⁻¹²"),
        (float("inf"), "inf", "inf", "+inf"),
    ],
)
def test_numbers(value, text, signed, score):
    from fastlrp.viz.numbers import fixed, number

    assert (number(value), number(value, sign=True), fixed(value)) == (text, signed, score)
