"""The cells of a grid: maps or pictures in rows and columns, from a result, from a dict of layers, or as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from fastlrp.targets.target_names import unnamed_targets
from fastlrp.viz.arrays import as_array, check_finite, picture_of, relevance_map
from fastlrp.viz.libraries import need
from fastlrp.viz.numbers import fixed
from fastlrp.viz.scale import Level, Scale

SCALES = ("shared", "row", "column", "cell")


@dataclass
class Map:
    """Relevance ``(H, W)``; of its last row, the last ``blank`` entries stand for nothing.

    ``is_row``: of a layer without axes of space, whose entries were laid row by row.
    """

    values: np.ndarray
    blank: int = 0
    is_row: bool = False

    @property
    def real(self) -> np.ndarray:
        return self.values.ravel()[: self.values.size - self.blank]


@dataclass
class Cells:
    """What is drawn, and how its rows and columns are called."""

    rows: list[list[Any]]
    row_labels: list[str]
    column_labels: list[str]
    scale: str = "shared"

    @property
    def width(self) -> int:
        return max(len(row) for row in self.rows)

    def maps(self) -> list[tuple[int, int, Map]]:
        return [(i, j, c) for i, row in enumerate(self.rows) for j, c in enumerate(row) if isinstance(c, Map)]


def cells_of(relevance: Any, sample: int) -> Cells:
    """Rows are samples and columns targets; for a dict of layers: targets and layers.

    Raises:
        TypeError, ValueError, IndexError: as documented for :func:`fastlrp.viz.grid`.
    """
    if isinstance(relevance, dict):
        return _of_layers(relevance, sample)
    if isinstance(relevance, (Tensor, np.ndarray)):
        return _of_result(relevance)
    if isinstance(relevance, (list, tuple)) and relevance and all(isinstance(r, (list, tuple)) for r in relevance):
        rows = [[_cell(item, f"relevance[{i}][{j}]") for j, item in enumerate(r)] for i, r in enumerate(relevance)]
        cells = Cells(rows, [""] * len(rows), [])
        if cells.width == 0:
            raise ValueError("relevance has rows, but nothing in them")
        cells.column_labels = [""] * cells.width
        return cells
    raise TypeError(
        "relevance must be a tensor (B, K, H, W) or (B, K, C, H, W), a dict from layer to (B, K, …), or a list of rows "
        f"of maps and pictures, got {type(relevance).__name__}"
    )


def channels_summed(array: np.ndarray) -> np.ndarray:
    """``(B, K, C, H, W)`` -> ``(B, K, H, W)``."""
    return array.sum(2) if array.ndim == 5 else array


def scales_of(
    cells: Cells, by: str, normalize: str, level: Level, quantile: float | None
) -> dict[tuple[int, int], Scale]:
    """The scale of each cell that is a map."""
    key = {"shared": lambda i, j: 0, "row": lambda i, j: i, "column": lambda i, j: j, "cell": lambda i, j: (i, j)}[by]
    groups: dict[Any, list[np.ndarray]] = {}
    for i, j, found in cells.maps():
        groups.setdefault(key(i, j), []).append(found.real)
    scales = {name: Scale.of(normalize, level, maps, quantile) for name, maps in groups.items()}
    return {(i, j): scales[key(i, j)] for i, j, _ in cells.maps()}


def _of_result(relevance: Any) -> Cells:
    array = as_array(relevance, "relevance")
    if array.ndim not in (4, 5):
        hint = ": of (K, H, W), for one sample give relevance[None]; one map, (C, H, W), is drawn by viz.heatmap"
        hint = hint if array.ndim == 3 else ""
        raise ValueError(f"relevance must be (B, K, H, W) or (B, K, C, H, W), got {array.shape}{hint}")
    _check(array, "relevance")
    rows = [[Map(values) for values in of_sample] for of_sample in channels_summed(array)]
    return Cells(rows, [f"sample {i}" for i in range(len(rows))], unnamed_targets(array.shape[1]))


def _of_layers(layers: dict[str, Any], sample: int) -> Cells:
    """Columns from the input up."""
    names = sorted(layers, key=lambda name: {"input": 0, "output": 2}.get(name, 1))
    if not names:
        raise ValueError("relevance is an empty dict: it needs at least one layer")
    columns, labels = [], []
    for name in names:
        label = f"relevance[{name!r}]"
        array = as_array(layers[name], label)
        if not 3 <= array.ndim <= 5:
            raise ValueError(f"{label} must be (B, K, N), (B, K, H, W) or (B, K, C, H, W), got {array.shape}")
        _check(array, label)
        if not -len(array) <= sample < len(array):
            raise IndexError(f"sample {sample} is out of range: {label} has {len(array)} samples")
        columns.append(
            [_block(values) if values.ndim == 1 else Map(values) for values in channels_summed(array)[sample]]
        )
        labels.append(f"{name}\n{'×'.join(map(str, array.shape[2:]))}")
    counts = {name: len(column) for name, column in zip(names, columns, strict=True)}
    if len(set(counts.values())) > 1:
        raise ValueError(f"relevance must have the same number of targets in each layer, got {counts}")
    rows = [list(row) for row in zip(*columns, strict=True)]
    return Cells(rows, unnamed_targets(len(rows)), labels, scale="column")


def _block(vector: np.ndarray) -> Map:
    """The entries of a layer without axes of space, row by row in a block that is nearly square."""
    width = int(np.ceil(np.sqrt(len(vector))))
    height = -(-len(vector) // width)
    blank = width * height - len(vector)
    return Map(np.pad(vector, (0, blank)).reshape(height, width), blank, True)


def _cell(item: Any, name: str) -> Any:
    if item is None:
        return None
    return picture_of(item, name) if isinstance(item, need("PIL.Image").Image) else Map(relevance_map(item, name))


def _check(array: np.ndarray, name: str) -> None:
    if array.size == 0:
        raise ValueError(f"{name} is empty: {array.shape}")
    check_finite(array, name)


def named(given: Sequence[Any] | None, found: list[str], name: str) -> list[str]:
    """The labels given, or those found.

    Raises:
        ValueError: if there is not one for each.
    """
    if given is None:
        return found
    if isinstance(given, str) or len(given) != len(found):
        count = "one text" if isinstance(given, str) else f"{len(given)}"
        raise ValueError(f"{name} must be {len(found)}, one each, got {count}")
    return [str(label.item() if isinstance(label, Tensor) else label) for label in given]


def captions(titles: Any, rows: int, columns: int) -> list[list[str]] | None:
    """The text below each cell: scores as ``+1.23``, anything else as it is; ``(rows, columns)``.

    Raises:
        ValueError: for other sizes.
    """
    if titles is None:
        return None
    if isinstance(titles, (Tensor, np.ndarray)):
        titles = as_array(titles, "titles").tolist()
    sizes = [len(row) if isinstance(row, (list, tuple)) else -1 for row in titles]
    if len(sizes) != rows or any(size != columns for size in sizes):
        raise ValueError(f"titles must be {rows} rows of {columns}, got {len(sizes)} of {sorted(set(sizes))}")
    return [[_caption(title) for title in row] for row in titles]


def _caption(title: Any) -> str:
    if title is None:
        return ""
    if isinstance(title, Tensor):
        title = title.item()
    return fixed(float(title)) if isinstance(title, (float, np.floating)) else str(title)
