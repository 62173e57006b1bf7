"""Grids of maps: samples by targets, targets by layers, or whatever stands in rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastlrp.viz.arrays import MAX_PIXELS
from fastlrp.viz.bar import BAR_HEIGHT, BAR_WIDTH, draw_bar
from fastlrp.viz.cell_bars import MOST, draw_bars
from fastlrp.viz.cells import SCALES, Cells, Map, captions, cells_of, named, scales_of
from fastlrp.viz.colors import SOFT, colormap
from fastlrp.viz.heatmaps import colored
from fastlrp.viz.labels import DPI, LARGE, NORMAL, SMALL, Pen, line_height, write
from fastlrp.viz.libraries import need
from fastlrp.viz.numbers import number
from fastlrp.viz.pictures import picture, pictures
from fastlrp.viz.saving import show_in_notebooks
from fastlrp.viz.scale import Level, Scale

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fastlrp.viz.colors import Cmap

UNIT = "relevance, in units of the model's output score"
"""What a grid's colour bar says unless told otherwise."""

_MARGIN, _GAP, _PAD = 10.0, 6.0, 4.0
_LABEL_WIDTH, _LABEL_LINES = 150.0, 4


def grid(
    relevance: Any,
    *,
    images: Any = None,
    statistics: str | tuple[Any, Any] | None = None,
    row_labels: Sequence[Any] | None = None,
    column_labels: Sequence[Any] | None = None,
    titles: Any = None,
    sample: int = 0,
    normalize: str = "symmetric",
    cmap: Cmap = SOFT,
    scale: str | None = None,
    level: Level = None,
    quantile: float | None = None,
    cell: int = 96,
    title: str | None = None,
    unit: str = UNIT,
    colorbar: bool = True,
) -> Figure:
    """Maps in rows and columns, with labels and a colour bar that says what a unit is.

    Args:
        relevance: ``(B, K, C, H, W)`` or ``(B, K, H, W)``: a row for each sample, a column for each target. Or the dict
            that ``record.relevance(…, layers=[…])`` returns: a row for each target of one sample, a column for each
            layer, from the input up; layers of different sizes fill the same cell, those without axes of space are
            bars, of more than 32 entries a block, row by row. Or a list of rows of maps ``(H, W)`` or ``(C, H, W)``,
            Pillow images, None.
        images: a column of inputs before the others: one for each row, as :func:`fastlrp.viz.overlay` takes them, or
            None where there is none. For a dict of layers, one image. Normalised images are de-normalised with
            ``statistics``, else stretched; the text at the colour bar says which.
        statistics: what images were normalised with, see :func:`fastlrp.viz.picture`.
        row_labels, column_labels: one for each row, and for each column but that of the images. Targets are called
            ``targets[0]``, … after their place in what was asked for, unless these say which classes they are.
        titles: text below the cells, ``(rows, columns)``; of a tensor or float numbers, the scores: ``+1.23``.
        sample: which sample of a dict of layers.
        normalize, cmap: see :func:`fastlrp.viz.heatmap`.
        scale: ``"shared"``: one for all; ``"row"``, ``"column"``, ``"cell"``: each its own, the end of which is written
            beside it. Shared unless given; for layers by column, because a layer of fewer entries has more relevance
            in each.
        level: the end of the colour map for all maps; takes the place of ``scale``.
        quantile: of ``|R|`` that a scale ends at, see :func:`fastlrp.viz.shared_level`. Unless given, one in a hundred
            of the entries that are not zero may lie beyond; the text at the colour bar says what share does.
        cell: side of a cell in pixels, at 100 dots per inch.
        title: above all.
        unit: what the colour bar says.
        colorbar: False leaves it out.

    Returns:
        a matplotlib figure of its own, unknown to pyplot; :func:`fastlrp.viz.save` writes it,
        :func:`fastlrp.viz.to_image` makes a picture of it.

    Raises:
        ValueError, TypeError, IndexError: for shapes, labels or options that do not fit. ImportError: without
        matplotlib and Pillow.

    Example::

        figure = viz.grid(relevance, images=x, column_labels=["for 3", "for 1"])
    """
    cells = cells_of(relevance, sample)
    by = _check(scale if scale is not None else cells.scale, level, cell)
    cells.row_labels = named(row_labels, cells.row_labels, "row_labels")
    cells.column_labels = named(column_labels, cells.column_labels, "column_labels")
    below = captions(titles, len(cells.rows), cells.width)
    scales = scales_of(cells, by, normalize, level, quantile)
    below = _with_scales(cells, by, scales, below)
    if images is not None:
        below, said = _with_images(cells, scales, images, below, isinstance(relevance, dict), statistics)
        unit = f"{unit}; images {said}" if said else unit

    _check_size(cells, cell)
    figure = need("matplotlib.figure").Figure(figsize=(4, 4), dpi=DPI, facecolor="white", layout="none")
    show_in_notebooks(figure)
    pen = Pen(figure)
    own = "" if by == "shared" else by
    bar = next(iter(scales.values())) if scales and colorbar else None
    if bar is not None and own:  # No scale in particular.
        bar = Scale(normalize, -1.0 if normalize == "symmetric" else 0.0, 1.0)
    beyond = _share_beyond(cells, scales)
    says = "" if bar is None else f"{unit}\neach {own} has its own scale" if own else unit
    if bar is not None and beyond:
        says += f"\n{number(100 * beyond)}\u2009% of the entries lie beyond the scale"
    sheet = _layout(pen, cells, below, cell, title, says)
    figure.set_size_inches(sheet.width / DPI, sheet.height / DPI)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, sheet.width), ylim=(sheet.height, 0), autoscale_on=False)
    axes.set_axis_off()
    _draw(axes, sheet, cells, scales, cmap)
    if bar is not None:
        draw_bar(figure, axes, pen, bar, colormap(cmap), (sheet.width, sheet.height), sheet.says, own, beyond > 0)
    return figure


@dataclass
class _Sheet:
    """Where everything goes; pixels from the top left."""

    width: float
    height: float
    left: float
    tops: list[float]
    heights: list[float]
    cell: int
    title: str
    rows: list[str]
    columns: list[str]
    captions: list[list[str]]
    says: str


def _layout(pen: Pen, cells: Cells, below: Any, cell: int, title: str | None, says: str) -> _Sheet:
    heights = [max((_shown(found, cell)[1] for found in row if found is not None), default=0.0) for row in cells.rows]
    rows = [
        pen.wrapped(label, NORMAL, _LABEL_WIDTH, max(2, int(height // line_height(NORMAL))))
        for label, height in zip(cells.row_labels, heights, strict=True)
    ]
    heights = [max(height, pen.height(label, NORMAL)) for height, label in zip(heights, rows, strict=True)]
    columns = [pen.wrapped(label, NORMAL, cell + _GAP - 2, _LABEL_LINES) for label in cells.column_labels]
    under = [[pen.wrapped(text, SMALL, cell + _GAP - 2, 3) for text in row] for row in below or []]
    row_width = max((pen.width(label, NORMAL) for label in rows), default=0.0)
    left = _MARGIN + (row_width + _PAD * 2 if row_width else 0.0)
    width = left + (cell + _GAP) * cells.width - _GAP + _MARGIN
    least = max(BAR_WIDTH if says else 0.0, min(pen.width(title or "", LARGE), 500.0)) + 2 * _MARGIN
    if width < least:  # Cells stay in the middle of what the title and the colour bar need.
        left, width = left + (least - width) / 2, least
    title = pen.wrapped(title, LARGE, width - 2 * _MARGIN, _LABEL_LINES) if title else ""
    says = pen.wrapped(says, NORMAL, width - _MARGIN, 4)
    top = _MARGIN + (pen.height(title, LARGE) + _PAD if title else 0.0)
    top += max((pen.height(label, NORMAL) for label in columns), default=0.0) + _PAD
    tops = []
    for i, height in enumerate(heights):
        tops.append(top)
        caption = max((pen.height(text, SMALL) for text in under[i]), default=0.0) if under else 0.0
        top += height + _GAP + (caption + _PAD if caption else 0.0)
    height = top - _GAP + (BAR_HEIGHT + pen.height(says, NORMAL) if says else 0.0) + _MARGIN
    return _Sheet(width, height, left, tops, heights, cell, title, rows, columns, under, says)


def _draw(axes: Any, sheet: _Sheet, cells: Cells, scales: dict[tuple[int, int], Scale], cmap: Any) -> None:
    write(axes, sheet.width / 2, _MARGIN, sheet.title, LARGE)
    lefts = [sheet.left + j * (sheet.cell + _GAP) for j in range(cells.width)]
    for label, x in zip(sheet.columns, lefts, strict=True):
        write(axes, x + sheet.cell / 2, sheet.tops[0] - _PAD, label, at="bottom")
    for i, row in enumerate(cells.rows):
        top, height = sheet.tops[i], sheet.heights[i]
        write(axes, sheet.left - 2 * _PAD, top + height / 2, sheet.rows[i], ha="right", at="middle")
        for j, found in enumerate(row):
            scale = scales.get((i, j))
            if scale is not None and _is_bars(found, scale):
                draw_bars(axes, found.real, scale, cmap, (lefts[j], top + (height - sheet.cell) / 2), sheet.cell)
            elif found is not None:
                shown = _shown(found, sheet.cell)
                corner = lefts[j] + (sheet.cell - shown[0]) / 2, top + (height - shown[1]) / 2
                _place(axes, _rgba(found, scale, cmap), corner, shown)
        for x, text in zip(lefts, sheet.captions[i] if sheet.captions else (), strict=False):
            write(axes, x + sheet.cell / 2, top + height + _PAD, text, SMALL)


def _is_bars(found: Map, scale: Scale) -> bool:
    return found.is_row and 1 < len(found.real) <= MOST and scale.normalize != "unaligned"


def _shown(found: Any, cell: int) -> tuple[float, float]:
    """Width and height of a picture in its cell, as large as its proportions allow."""
    if isinstance(found, Map) and found.is_row and len(found.real) <= MOST:
        return cell, cell
    w, h = found.values.shape[::-1] if isinstance(found, Map) else found.size
    return cell * min(1.0, w / h), cell * min(1.0, h / w)


def _place(axes: Any, rgba: np.ndarray, corner: tuple[float, float], shown: tuple[float, float]) -> None:
    """A picture with a thin frame."""
    left, top = corner
    extent = (left, left + shown[0], top + shown[1], top)
    axes.imshow(rgba, extent=extent, origin="upper", aspect="auto", interpolation="antialiased")
    frame = need("matplotlib.patches").Rectangle(corner, *shown, fill=False, edgecolor="#b0b0b0", linewidth=0.6)
    axes.add_patch(frame)


def _rgba(found: Any, scale: Scale | None, cmap: Any) -> np.ndarray:
    if scale is None:
        return np.asarray(found.convert("RGBA"))
    rgb = colored(found.values, scale, cmap)
    rgba = np.dstack((rgb, np.full(rgb.shape[:2], 255, np.uint8)))
    if found.blank:
        rgba.reshape(-1, 4)[-found.blank :] = 0
    return rgba


def _with_scales(cells: Cells, by: str, scales: dict[tuple[int, int], Scale], below: Any) -> Any:
    """Write the scales of rows, columns or cells beside them."""
    if by == "cell":
        below = below or [[""] * cells.width for _ in cells.rows]
        return [[_joined(text, scales.get((i, j))) for j, text in enumerate(row)] for i, row in enumerate(below)]
    if by != "shared":
        axis, labels = (0, cells.row_labels) if by == "row" else (1, cells.column_labels)
        found = {place[axis]: scale for place, scale in scales.items()}
        labels[:] = [_joined(label, found.get(position)) for position, label in enumerate(labels)]
    return below


def _joined(text: str, scale: Scale | None) -> str:
    return text if scale is None else f"{text}\n{_size(scale)}".removeprefix("\n")


def _size(scale: Scale) -> str:
    if scale.normalize == "unaligned":
        return f"{number(scale.low)} … {number(scale.high)}"
    return f"{'±' if scale.normalize == 'symmetric' else '≤ '}{number(scale.high)}"


def _with_images(
    cells: Cells, scales: dict[Any, Scale], images: Any, below: Any, single: bool, statistics: Any
) -> tuple[Any, str]:
    """Put a column of inputs before the others; everything else moves by one. The text below, and what was done."""
    if single:
        first, said = picture(images, statistics, "images")
        found: list[Any] = [first] + [None] * (len(cells.rows) - 1)
    else:
        if len(images) != len(cells.rows):
            raise ValueError(f"images must be {len(cells.rows)}, one for each row, got {len(images)}")
        found, said = pictures(images, statistics)
    for row, one in zip(cells.rows, found, strict=True):
        row.insert(0, one)
    cells.column_labels.insert(0, "image")
    moved = {(i, j + 1): scale for (i, j), scale in scales.items()}
    scales.clear()
    scales.update(moved)
    return below and [["", *row] for row in below], said


def _share_beyond(cells: Cells, scales: dict[tuple[int, int], Scale]) -> float:
    """Of all entries, those that are drawn like the end of their scale but are larger."""
    beyond = total = 0
    for i, j, found in cells.maps():
        scale, values = scales[i, j], found.real
        total += values.size
        if scale.normalize == "unaligned":
            beyond += int(((values < scale.low) | (values > scale.high)).sum())
        else:
            beyond += int((np.abs(values) > scale.high).sum())
    return beyond / total if total else 0.0


def _check(scale: str, level: Level, cell: int) -> str:
    if scale not in SCALES:
        raise ValueError(f"unknown scale {scale!r}: expected one of {', '.join(map(repr, SCALES))}")
    if isinstance(cell, bool) or not isinstance(cell, int) or cell < 16:
        raise ValueError(f"cell must be a whole number of at least 16 pixels, got {cell!r}")
    return scale if level is None else "shared"


def _check_size(cells: Cells, cell: int) -> None:
    pixels = len(cells.rows) * cells.width * (cell + _GAP) ** 2
    if pixels > MAX_PIXELS:
        raise ValueError(
            f"a grid of {len(cells.rows)} x {cells.width} cells of {cell} pixels is larger than {MAX_PIXELS} pixels: "
            "take fewer samples or targets (relevance[:8, :16]) or a smaller cell"
        )
