"""Relevance without two axes of space: signals as curves, tables as bars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastlrp.viz.arrays import as_array, check_finite
from fastlrp.viz.colors import SOFT, colormap
from fastlrp.viz.labels import DPI, NORMAL, SMALL
from fastlrp.viz.libraries import need
from fastlrp.viz.numbers import number
from fastlrp.viz.saving import show_in_notebooks
from fastlrp.viz.scale import Level, Scale

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fastlrp.viz.colors import Cmap

_UNIT = "relevance"


def curve(
    signal: Any,
    relevance: Any,
    *,
    times: Any = None,
    names: Sequence[str] | None = None,
    title: str = "",
    xlabel: str = "",
    cmap: Cmap = SOFT,
    level: Level = None,
    quantile: float | None = None,
) -> Figure:
    """A signal as a curve over bands of its relevance: each sample has the colour of its own.

    Args:
        signal: ``(T,)``, or ``(C, T)``: a curve for each channel, below one another on one scale of colours.
        relevance: of the signal's shape; ``(T,)`` for all channels together.
        times: T numbers of the horizontal axis, ascending; the sample's number unless given.
        names: of the channels. title, xlabel: text.
        cmap, level: see :func:`fastlrp.viz.heatmap`. quantile: see :func:`fastlrp.viz.grid`.

    Returns:
        a matplotlib figure, as :func:`fastlrp.viz.grid` does.

    Raises:
        ValueError: for shapes that do not fit, NaN or infinity. ImportError: without matplotlib.

    Example::

        time = np.linspace(0, 4, 200)
        figure = viz.curve(np.sin(time), np.sin(time) * np.exp(-((time - 2) ** 2)), times=time, xlabel="seconds")
    """
    curves = _rows(signal, "signal")
    found = _rows(relevance, "relevance")
    if found.shape[0] == 1 < curves.shape[0]:
        found = np.broadcast_to(found, curves.shape)
    if found.shape != curves.shape:
        raise ValueError(f"relevance must be of the signal's shape {curves.shape}, got {found.shape}")
    count, length = curves.shape
    place = np.arange(length, dtype=np.float64) if times is None else as_array(times, "times").astype(np.float64)
    if place.shape != (length,) or (np.diff(place) <= 0).any():
        raise ValueError(f"times must be {length} ascending numbers, got {place.shape}")
    labels = _labels(names, count, "channel") if names is not None or count > 1 else [""]
    scale = Scale.of("symmetric", level, [found], quantile)
    figure = need("matplotlib.figure").Figure(figsize=(7.5, 1.1 + 1.25 * count), dpi=DPI, layout="constrained")
    show_in_notebooks(figure)
    norm = need("matplotlib.colors").Normalize(-(scale.high or 1.0), scale.high or 1.0)
    axes = figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0]
    middles = (place[1:] + place[:-1]) / 2 if length > 1 else place[:0]
    first = 2 * place[0] - middles[0] if length > 1 else place[0] - 0.5
    end = 2 * place[-1] - middles[-1] if length > 1 else place[0] + 0.5
    borders = np.concatenate(([first], middles, [end]))
    for ax, values, colors, label in zip(axes, curves, found, labels, strict=True):
        low, high = float(values.min()), float(values.max())
        margin = (high - low) * 0.12 or 1.0
        ax.pcolormesh(
            borders, (low - margin, high + margin), colors[None], cmap=colormap(cmap), norm=norm, rasterized=True
        )
        outline = need("matplotlib.patheffects").withStroke(linewidth=2.4, foreground="white")
        ax.plot(place, values, color="#202020", linewidth=1.1, path_effects=[outline])
        ax.set_ylabel(label, fontsize=NORMAL, parse_math=False)
        _plain_axes(ax)
    axes[-1].set_xlabel(xlabel, fontsize=NORMAL, parse_math=False)
    if title:
        axes[0].set_title(title, fontsize=NORMAL + 1, parse_math=False)
    _colour_bar(figure, list(axes), norm, cmap, scale, _beyond_text(found, scale))
    return figure


def bars(
    relevance: Any,
    names: Sequence[str] | None = None,
    *,
    values: Any = None,
    most: int = 20,
    title: str = "",
    cmap: Cmap = SOFT,
) -> Figure:
    """The relevance of named features as bars, the largest first; red speaks for the target and blue against it.

    Args:
        relevance: ``(N,)``. names: of the features; their numbers unless given.
        values: ``(N,)``, what the features were, written behind their names.
        most: bars; what all others have together is one more bar, so that nothing is left out of the sum.
        title: text. cmap: the colours of the two ends.

    Returns:
        a matplotlib figure, as :func:`fastlrp.viz.grid` does.

    Raises:
        ValueError: for shapes that do not fit, NaN or infinity. ImportError: without matplotlib.

    Example::

        figure = viz.bars([0.5, -1.2, 2.2], ["age", "hours", "gain"], values=[39, 40, 2174])
    """
    array = as_array(relevance, "relevance")
    if array.ndim != 1 or not array.size:
        raise ValueError(f"relevance must be (N,), one number for each feature, got {array.shape}")
    check_finite(array, "relevance")
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:
        raise ValueError(f"most must be a whole number of at least 1, got {most!r}")
    labels = _labels(names, len(array), "feature")
    if values is not None:
        numbers = as_array(values, "values")
        if numbers.shape != array.shape:
            raise ValueError(f"values must be {array.shape}, as relevance is, got {numbers.shape}")
        labels = [f"{label} = {number(float(v), 5)}" for label, v in zip(labels, numbers, strict=True)]
    order = np.argsort(-np.abs(array), kind="stable")
    rows = [(labels[i], float(array[i])) for i in order[:most]]
    rest = order[most:]
    if len(rest):
        rows.append((f"{len(rest)} others", float(array[rest].sum(dtype=np.float64))))
    colors = colormap(cmap)
    figure = need("matplotlib.figure").Figure(figsize=(6.5, 1.0 + 0.26 * len(rows)), dpi=DPI, layout="constrained")
    show_in_notebooks(figure)
    ax = figure.subplots()
    sizes = [value for _, value in rows]
    ax.barh(range(len(rows)), sizes, color=[colors(1.0) if v > 0 else colors(0.0) for v in sizes], height=0.72)
    ax.invert_yaxis()
    ax.axvline(0, color="#606060", linewidth=0.7)
    largest = max(map(abs, sizes)) or 1.0
    for i, value in enumerate(sizes):
        ax.annotate(
            number(value, 3, sign=True), (value, i), (3 if value >= 0 else -3, 0), textcoords="offset points",
            ha="left" if value >= 0 else "right", va="center", fontsize=SMALL,
        )  # fmt: skip
    low, high = min(0.0, *sizes), max(0.0, *sizes)
    ax.set_xlim(low - (0.25 if low < 0 else 0.03) * largest, high + (0.25 if high > 0 else 0.03) * largest)
    total = number(float(array.sum(dtype=np.float64)), 3, sign=True)
    ax.set_xlabel(f"{_UNIT}; all features together {total}", fontsize=NORMAL)
    if title:
        ax.set_title(title, fontsize=NORMAL + 1, parse_math=False)
    _plain_axes(ax)
    labels = [label for label, _ in rows]
    ax.set_yticks(range(len(rows)), labels=labels, fontsize=SMALL + 0.5, parse_math=False)
    ax.tick_params(axis="y", length=0)
    return figure


def _rows(values: Any, name: str) -> np.ndarray:
    array = as_array(values, name)
    if array.ndim not in (1, 2) or not array.size:
        raise ValueError(f"{name} must be (T,) or (C, T), got {array.shape}")
    check_finite(array, name)
    return array.reshape(-1, array.shape[-1])


def _labels(names: Sequence[str] | None, count: int, what: str) -> list[str]:
    if names is None:
        return [f"{what} {i}" for i in range(count)]
    if isinstance(names, str) or len(names) != count:
        got = "one text" if isinstance(names, str) else str(len(names))
        raise ValueError(f"names must be {count}, one for each {what}, got {got}")
    return [str(name) for name in names]


def _plain_axes(ax: Any) -> None:
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    formatter = need("matplotlib.ticker").FuncFormatter(lambda value, _: number(value, 3))
    ax.xaxis.set_major_formatter(formatter)
    ax.yaxis.set_major_formatter(formatter)
    ax.tick_params(labelsize=SMALL)


def _colour_bar(figure: Any, axes: list[Any], norm: Any, cmap: Cmap, scale: Scale, note: str) -> None:
    mappable = need("matplotlib.cm").ScalarMappable(norm, colormap(cmap))
    extend = "both" if note else "neither"
    bar = figure.colorbar(mappable, ax=axes, extend=extend, fraction=0.05, pad=0.02, aspect=30)
    bar.set_ticks([norm.vmin, 0, norm.vmax], labels=[number(-scale.high), "0", number(scale.high, sign=True)])
    bar.ax.tick_params(labelsize=SMALL)
    bar.set_label(_UNIT + note, fontsize=SMALL)


def _beyond_text(found: np.ndarray, scale: Scale) -> str:
    share = float((np.abs(found) > scale.high).mean())
    return f"\n{number(100 * share)}\u2009% beyond" if share else ""
