"""Relevance per token, as coloured text."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastlrp.viz.arrays import as_array, check_finite
from fastlrp.viz.heatmaps import colored
from fastlrp.viz.scale import Level, Scale

if TYPE_CHECKING:
    from fastlrp.viz.colors import Cmap

_SPAN = (
    '<span style="background:{back};color:{ink};padding:0.1em 0.15em;border-radius:0.2em" '
    'title="{value}">{token}</span>'
)
_BOX = '<div style="font-family:sans-serif;line-height:1.9;white-space:pre-wrap">{}</div>'
_LEGEND = '<div style="font-size:80%;color:#555555">{}</div>'


def text_html(
    tokens: Sequence[str],
    relevance: Any,
    *,
    normalize: str = "symmetric",
    cmap: Cmap = "bwr",
    level: Level = None,
    separator: str = " ",
    legend: bool = True,
) -> str:
    """Tokens on the colours of their relevance, as a ``<div>`` that needs no other file.

    Args:
        tokens: T pieces of text; escaped.
        relevance: ``(T,)``, or ``(T, D)`` summed over D: one sample, one target.
        normalize, cmap, level: see :func:`fastlrp.viz.heatmap`. Texts with one level can be compared; take
            ``level=float(relevance.abs().max())`` of all of them.
        separator: between tokens; ``""`` where they bring their own spaces.
        legend: a line that says what the colours stand for.

    Returns:
        ASCII: other characters are numeric references, so that the result is right in a page of any encoding. The
        relevance of each token is its tooltip.

    Raises:
        ValueError: if there is not one relevance for each token, for NaN or infinity. TypeError: for tokens that are no
        strings.

    Example::

        page = viz.text_html(["a", "bad", "film"], [0.1, 2.0, 0.3])
    """
    tokens, values = _tokens(tokens), _per_token(relevance)
    _check_lengths(tokens, values)
    scale = _scale(normalize, level, values)
    spans = [
        _SPAN.format(
            back="#{:02x}{:02x}{:02x}".format(*back),
            ink="#ffffff" if _is_dark(back) else "#000000",
            value=f"{value:+.4g}",
            token=html.escape(token) or "&#8203;",
        )
        for token, value, back in zip(tokens, values, _colors(values, scale, cmap), strict=True)
    ]
    text = _BOX.format(
        html.escape(separator).join(spans) + (_LEGEND.format(html.escape(_says(scale))) if legend else "")
    )
    return text.encode("ascii", "xmlcharrefreplace").decode()


def text_terminal(
    tokens: Sequence[str],
    relevance: Any,
    *,
    normalize: str = "symmetric",
    cmap: Cmap = "bwr",
    level: Level = None,
    separator: str = " ",
    color: bool | None = None,
) -> str:
    """Tokens on the colours of their relevance, for terminals with 24-bit colours.

    Args:
        tokens, relevance, normalize, cmap, level, separator: see :func:`text_html`. Control characters in tokens are
            shown as escapes (``\\\\n``), so that no text can give orders to the terminal.
        color: False writes ``token[+0.12]`` in place of colours. None: colours, unless the environment variable
            ``NO_COLOR`` is set and not empty.

    Raises:
        ValueError, TypeError: as :func:`text_html`.

    Example::

        line = viz.text_terminal(["a", "bad", "film"], [0.1, 2.0, 0.3], color=False)
        assert line == "a[+0.1] bad[+2] film[+0.3]"
    """
    tokens, values = _tokens(tokens), _per_token(relevance)
    _check_lengths(tokens, values)
    scale = _scale(normalize, level, values)
    shown = [_printable(token) for token in tokens]
    if color is None:
        color = not os.environ.get("NO_COLOR")
    if not color:
        return separator.join(f"{token}[{value:+.2g}]" for token, value in zip(shown, values, strict=True))
    return separator.join(
        "\x1b[38;2;{};48;2;{}m{}\x1b[0m".format(
            "255;255;255" if _is_dark(back) else "0;0;0", "{};{};{}".format(*back), token
        )
        for token, back in zip(shown, _colors(values, scale, cmap), strict=True)
    )


def _tokens(tokens: Sequence[str]) -> list[str]:
    if isinstance(tokens, str) or not all(isinstance(token, str) for token in tokens):
        raise TypeError("tokens must be a list of strings: tokenizer.convert_ids_to_tokens(ids) makes one from indices")
    return list(tokens)


def _per_token(relevance: Any) -> np.ndarray:
    array = as_array(relevance, "relevance")
    if array.ndim not in (1, 2):
        hint = ". A result is (B, K, T, D): take one sample and one target, relevance[0, 0]" if array.ndim > 2 else ""
        raise ValueError(f"relevance must be (T,) or (T, D), got {array.shape}{hint}")
    check_finite(array, "relevance")
    return array if array.ndim == 1 else array.sum(1)


def _check_lengths(tokens: list[str], values: np.ndarray) -> None:
    if len(tokens) != len(values):
        raise ValueError(
            f"there are {len(tokens)} tokens and {len(values)} entries of relevance: one each, special and padding "
            "tokens included"
        )


def _scale(normalize: str, level: Level, values: np.ndarray) -> Scale:
    return Scale.of(normalize, level, [values] if len(values) else [np.zeros(1)])


def _colors(values: np.ndarray, scale: Scale, cmap: Any) -> list[list[int]]:
    return colored(values, scale, cmap).tolist()


def _is_dark(color: Sequence[int]) -> bool:
    red, green, blue = color
    return 0.299 * red + 0.587 * green + 0.114 * blue < 140


def _says(scale: Scale) -> str:
    what = "|relevance|" if scale.normalize == "absolute" else "relevance"
    return f"{what} from {scale.low:.3g} to {scale.high:.3g}, in units of the model's output score"


def _printable(token: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in token)
