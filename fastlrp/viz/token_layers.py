"""Where relevance of a text stands from layer to layer: layers by tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastlrp.targets.target_names import unnamed_targets
from fastlrp.viz.arrays import as_array, check_finite
from fastlrp.viz.colors import SOFT, colormap
from fastlrp.viz.labels import DPI, NORMAL, SMALL, Pen, write
from fastlrp.viz.libraries import need
from fastlrp.viz.numbers import number
from fastlrp.viz.pieces import pieces
from fastlrp.viz.saving import show_in_notebooks
from fastlrp.viz.scale import Level, Scale

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fastlrp.viz.colors import Cmap

_CELL, _ROW, _GAP = 26.0, 18.0, 10.0


def token_layers(
    relevance_by_layer: Mapping[str, Any],
    tokens: Sequence[str],
    *,
    sample: int = 0,
    targets: Sequence[Any] | None = None,
    layers: Sequence[str] | None = None,
    scale: str = "shared",
    level: Level = None,
    cmap: Cmap = SOFT,
    marks: str = "auto",
    title: str = "",
) -> Figure:
    """Layers by tokens, the output on top: each cell is the relevance of a hidden state, summed over its channels.

    On the right stands the sum of each layer: what it has lost or gained on the way is at biases, norms and attention.

    Args:
        relevance_by_layer: what ``record.relevance(targets, layers=[…])`` returns: ``(B, K, S, D)`` or ``(B, K, S)``
            by layer, as execution goes. Entries without an axis of S positions are left out, ``"output"`` always.
        tokens: S of them, of this sample. sample: which. targets: K names; one picture for each target.
        layers: which of them, in this order from below; all unless given.
        scale: ``"shared"``: one for everything; ``"row"``: each layer its own.
        level, cmap: see :func:`fastlrp.viz.heatmap`. marks: of subwords, see :func:`fastlrp.viz.text`.
        title: text above.

    Raises:
        ValueError: if no layer has S positions, for unknown layers, NaN or infinity. TypeError: for no dict.

    Example::

        layers = reader(ids, 3, layers=["0"], at=-1)
        figure = viz.token_layers(layers, ["the", "bad", "old", "film"], targets=["word 3"])
    """
    if scale not in ("shared", "row"):
        raise ValueError(f"unknown scale {scale!r}: expected 'shared' or 'row'")
    rows = _rows(relevance_by_layer, tokens, sample, layers)
    names = list(rows)[::-1]
    maps = np.stack([rows[name] for name in names], 1)  # (K, L, S)
    if targets is not None and (isinstance(targets, str) or len(targets) != len(maps)):
        raise ValueError(f"targets must be a list of {len(maps)} names, got {targets!r:.80}")
    heads = [str(t) for t in targets] if targets is not None else unnamed_targets(len(maps))
    heads = [""] if targets is None and len(maps) == 1 else heads
    labels = [_label(tokens, piece.tokens, piece.text) for piece in pieces(tokens, marks)]
    starts = [piece.tokens[0] for piece in pieces(tokens, marks)]
    maps = np.add.reduceat(maps, starts, axis=2)
    shared = Scale.of("symmetric", level, [maps])
    return _drawn(maps, names, labels, heads, shared, scale, level, cmap, title)


def _rows(found: Any, tokens: Sequence[str], sample: int, layers: Sequence[str] | None) -> dict[str, np.ndarray]:
    if not isinstance(found, Mapping):
        raise TypeError(
            "relevance_by_layer must be a dict from layer to relevance, as record.relevance(targets, layers=[…]) "
            f"returns, got {type(found).__name__}"
        )
    if isinstance(tokens, str) or not tokens or not all(isinstance(token, str) for token in tokens):
        raise TypeError("tokens must be a list of strings: tokenizer.convert_ids_to_tokens(ids) makes one from indices")
    unknown = [name for name in layers or () if name not in found]
    if unknown:
        raise ValueError(f"there is no layer {unknown[0]!r}: there are {', '.join(map(str, list(found)[:12]))}")
    rows: dict[str, np.ndarray] = {}
    for name in _order(found) if layers is None else layers:
        given = found[name]
        if isinstance(given, Mapping):  # Several inputs, among which the ids are.
            given = next(
                (value for key, value in given.items() if str(key).endswith(("input_ids", "inputs_embeds"))), None
            )
        if given is None:
            continue
        values = as_array(given, f"relevance_by_layer[{name!r}]").astype(np.float64)
        fits = values.ndim in (3, 4) and values.shape[2] == len(tokens)
        if not fits and layers is not None:
            raise ValueError(
                f"{name!r} is {values.shape}, expected (B, K, S, D) or (B, K, S) with S = {len(tokens)} tokens"
            )
        if not fits:
            continue
        if not 0 <= sample < len(values):
            raise ValueError(f"there is no sample {sample}: {name!r} has {len(values)}")
        values = values[sample] if values.ndim == 3 else values[sample].sum(-1)
        check_finite(values, f"relevance_by_layer[{name!r}]")
        rows[str(name)] = values
    if not rows:
        shapes = ", ".join(f"{name!r} {tuple(getattr(v, 'shape', ()))}" for name, v in list(found.items())[:6])
        raise ValueError(f"no layer has (B, K, S, D) or (B, K, S) with S = {len(tokens)} tokens: there are {shapes}")
    return rows


def _order(found: Mapping[str, Any]) -> list[str]:
    """The input first, the output left out: its last axis are classes."""
    first = [name for name in found if name in ("input", "input_ids", "inputs_embeds")]
    return first + [name for name in found if name not in first and name != "output"]


def _label(tokens: Sequence[str], place: tuple[int, int], text: str) -> str:
    return text.removesuffix("\n") or repr(tokens[place[0]])


def _drawn(
    maps: np.ndarray, names: list[str], labels: list[str], heads: list[str], shared: Scale, scale: str, level: Level,
    cmap: Cmap, title: str,
) -> Figure:  # fmt: skip
    made = need("matplotlib.figure").Figure(dpi=DPI, facecolor="white")
    pen = Pen(made)
    labels = [label if len(label) <= 16 else f"{label[:15]}…" for label in labels]
    names_of = [name if len(name) <= 44 else f"…{name[-43:]}" for name in names]
    left = _GAP + max(pen.width(name, SMALL) for name in names_of) + 6
    below = max(pen.width(label, SMALL) for label in labels) + 12
    inner, tall, top = _CELL * len(labels), _ROW * len(names), 26.0 if title else 6.0
    width = max(left + inner + 70, left + 300)
    each = tall + below + 24
    height = top + each * len(maps) + 46
    made.set_size_inches(width / DPI, height / DPI)
    page = made.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    page.axis("off")
    if title:
        write(page, _GAP, 6, title, NORMAL, ha="left")
    for k, block in enumerate(maps):
        y = top + k * each
        write(page, left, y + 3, heads[k], NORMAL, ha="left")
        place = (left / width, 1 - (y + 20 + tall) / height, inner / width, tall / height)
        axes = made.add_axes(place)
        drawn = block
        if scale == "row":
            sizes = [Scale.of("symmetric", level, [row]).high for row in block]
            drawn = np.stack([row / size if size else row for row, size in zip(block, sizes, strict=True)])
        high = 1.0 if scale == "row" else shared.high or 1.0
        axes.imshow(drawn, cmap=colormap(cmap), vmin=-high, vmax=high, aspect="auto", interpolation="nearest")
        axes.set(xticks=range(len(labels)), yticks=range(len(names)))
        axes.set_xticklabels(labels, rotation=90, fontsize=SMALL, parse_math=False)
        axes.set_yticklabels(names_of, fontsize=SMALL, parse_math=False)
        axes.tick_params(length=0)
        axes.spines[:].set(linewidth=0.5, color="#808080")
        for row, sums in enumerate(block.sum(1)):
            write(
                page,
                left + inner + 8,
                y + 20 + (row + 0.5) * _ROW,
                number(sums, 3, sign=True),
                SMALL,
                ha="left",
                at="middle",
            )
        write(page, left + inner + 8, y + 3, "sum", SMALL, ha="left")
    _bar(made, page, (left, width, height), shared, scale, cmap)
    show_in_notebooks(made)
    return made


def _bar(made: Any, page: Any, size: tuple[float, float, float], shared: Scale, scale: str, cmap: Cmap) -> None:
    left, width, height = size
    axes = made.add_axes((left / width, 30 / height, 160 / width, 9 / height))
    axes.imshow(np.linspace(-1, 1, 255)[None], cmap=colormap(cmap), aspect="auto")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(linewidth=0.5, color="#808080")
    high = "max of the layer" if scale == "row" else number(shared.high, 2, sign=True)
    low = "−max" if scale == "row" else number(-shared.high)
    for place, label, side in ((0.0, low, "left"), (80.0, "0", "center"), (160.0, high, "right")):
        write(page, left + place, height - 27, label, SMALL, ha=side)
    write(page, left + 172, height - 42, "relevance, summed\nover channels", SMALL, ha="left")
