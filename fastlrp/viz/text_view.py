"""Relevance of tokens for several targets: in a notebook, a page, a terminal, a file."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastlrp.files import whole
from fastlrp.targets.target_names import unnamed_targets
from fastlrp.viz import text_lines, text_page
from fastlrp.viz.arrays import as_array, check_finite
from fastlrp.viz.pieces import MARKS, Piece, folded, is_special, joined, pieces
from fastlrp.viz.saving import save
from fastlrp.viz.text_sample import TextData, TextSample

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCALES = ("shared", "each")


@dataclass(frozen=True)
class Text(TextData):
    """Coloured texts, one for each sample and target; made by :func:`fastlrp.viz.text`.

    In a notebook it shows itself, ``str()`` of it is plain text.

    Args:
        samples: what is shown of each sample. scale, level: see :func:`fastlrp.viz.text`.

    Example::

        view = viz.text(["a", "bad", "film"], [0.1, 2.0, 0.3], targets=["negative"])
        assert "bad[+++]" in str(view)
    """

    def html(self) -> str:
        """A ``<div>`` that needs no other file, ASCII, everything in it escaped.

        It takes the letters' colour from the page around it and puts colours of some transparency behind them, so that
        it is read on light and dark pages alike. Each token's tooltip has its number.
        """
        return text_page.fragment(self)

    def _repr_html_(self) -> str:
        return self.html()

    def terminal(self, color: bool | str | None = None, width: int | None = None) -> str:
        """The texts for a terminal.

        Args:
            color: ``"truecolor"``, ``"256"``, False for plain text with ``[++]`` and ``[-]`` behind the tokens; True:
                what the terminal has. None: no colours if the environment variable ``NO_COLOR`` is not empty or stdout
                is no terminal, else as True.
            width: columns, by default the terminal's.
        """
        return text_lines.terminal(self, color, width)

    def __str__(self) -> str:
        return self.terminal(color=False)

    def figure(self, width: float = 7.0) -> Figure:
        """The texts as a matplotlib figure of that many inches, for :func:`fastlrp.viz.save`.

        For scripts from left to right: matplotlib neither turns nor joins letters.
        """
        from fastlrp.viz.text_figure import figure

        return figure(self, width)

    def save(self, path: str | os.PathLike[str], **options: Any) -> Path:
        """Write ``.html`` (a whole page), ``.txt``, or a picture (``.png``, ``.pdf``, ``.svg``, …).

        The file is whole, or as it was before.

        Raises:
            ValueError, OSError: as :func:`fastlrp.viz.save`.
        """
        path = Path(path)
        if path.suffix.lower() not in (".html", ".htm", ".txt"):
            return save(self.figure(), path, **options)
        if not path.parent.is_dir():
            raise FileNotFoundError(f"there is no folder {str(path.parent)!r}: make it first")
        content = self.terminal(False, 100) + "\n" if path.suffix.lower() == ".txt" else text_page.page(self)
        with whole(path) as file:
            file.write(content.encode("utf-8", "backslashreplace"))
        return path

    def contrast(self, first: int | str, second: int | str) -> Text:
        """What speaks for one target and against another: the difference of their relevance and scores.

        Args:
            first, second: targets by name or position.

        Raises:
            KeyError, IndexError: for a target that is not there.
        """
        return replace(self, samples=tuple(sample.contrast(first, second) for sample in self.samples))


def text(
    tokens: Sequence[str] | Sequence[Sequence[str]],
    relevance: Any,
    *,
    targets: Sequence[Any] | None = None,
    scores: Any = None,
    names: Sequence[str] | None = None,
    special: Collection[str] | None = None,
    mask: Any = None,
    words: bool = False,
    marks: str = "auto",
    separator: str = " ",
    scale: str = "shared",
    level: float | None = None,
) -> Text:
    """Token relevance of several targets as coloured text: red speaks for a target, blue against it.

    Args:
        tokens: S tokens, as ``tokenizer.convert_ids_to_tokens(ids)`` gives them; or a list of them for each sample, of
            which a shorter one leaves its padding out.
        relevance: ``(S,)``, ``(K, S)`` or ``(B, K, S)``: what an explainer gives for token ids.
        targets: K names, or K for each sample. scores: ``(K,)`` or ``(B, K)``, shown beside the sum of relevance.
        names: of the samples.
        special: special tokens, ``tokenizer.all_special_tokens``; by their form unless given. They are grey, and the
            scale does not follow them. mask: ``attention_mask``, ``(S,)`` or ``(B, S)``: what is 0 is grey too.
        words: one colour for each word, with the sum of its pieces.
        marks: of subwords, see :func:`fastlrp.viz.pieces.pieces`: ``"auto"``, ``"wordpiece"``, ``"sentencepiece"``,
            ``"bytes"``, ``"end"``, ``"none"``. separator: between tokens without marks.
        scale: ``"shared"``: one for all texts; ``"each"``: each text has its own.
        level: ``|R|`` at the ends of the colours.

    Raises:
        ValueError: for shapes that do not fit each other, NaN or infinity. TypeError: for tokens that are no strings.

    Example::

        tokens = [["the", "bad", "old", "film"], ["a", "good", "one", "."]]  # tokenizer.convert_ids_to_tokens(…)
        view = viz.text(tokens, reader(ids, "top3", at=-1))  # a notebook shows it
        view.save("text.html")
    """
    if scale not in SCALES:
        raise ValueError(f"unknown scale {scale!r}: expected one of {', '.join(map(repr, SCALES))}")
    if marks not in MARKS:
        raise ValueError(f"unknown marks {marks!r}: expected one of {', '.join(map(repr, MARKS))}")
    if level is not None and not (isinstance(level, (int, float)) and 0 <= level < float("inf")):
        raise ValueError(f"level must be a finite number >= 0, the largest |R| of the scale, got {level!r}")
    lists = _token_lists(tokens)
    values = _values(relevance, lists, isinstance(tokens[0], str) if len(tokens) else True)
    batch, count = values.shape[:2]
    targets_of = _names(targets, batch, count)
    scores_of = _scores(scores, batch, count)
    real = _mask(mask, batch, values.shape[2])
    titles = _titles(names, batch)
    samples = []
    for i, own in enumerate(lists):
        grey = [is_special(t) if special is None else t in special for t in own]
        grey = [g or not r for g, r in zip(grey, real[i], strict=False)]
        found = _pieces(own, marks, grey, separator, words)
        samples.append(TextSample(titles[i], tuple(own), tuple(found), targets_of[i], scores_of[i], values[i]))
    return Text(tuple(samples), scale, level)


def _pieces(tokens: list[str], marks: str, grey: list[bool], separator: str, words: bool) -> list[Piece]:
    found = folded(pieces(tokens, marks, grey, separator))
    return joined(found) if words else found


def _token_lists(tokens: Any) -> list[list[str]]:
    if isinstance(tokens, str) or not isinstance(tokens, Sequence):
        raise TypeError("tokens must be a list of strings: tokenizer.convert_ids_to_tokens(ids) makes one from indices")
    lists = [list(tokens)] if all(isinstance(token, str) for token in tokens) else [
        [own] if isinstance(own, str) or not isinstance(own, Sequence) else list(own) for own in tokens
    ]  # fmt: skip
    if not all(isinstance(token, str) for own in lists for token in own) or any(
        isinstance(own, str) != isinstance(tokens[0], str) for own in tokens
    ):
        raise TypeError("tokens must be a list of strings, or one such list for each sample: "
                        "tokenizer.convert_ids_to_tokens(ids) makes one from indices")  # fmt: skip
    return lists


def _values(relevance: Any, lists: list[list[str]], single: bool) -> np.ndarray:
    """``(B, K, S)``, float64."""
    array = as_array(relevance, "relevance").astype(np.float64)
    given = array.shape
    if array.ndim in (1, 2) and single:
        array = array.reshape(1, given[0] if array.ndim == 2 else 1, given[-1])
    if array.ndim != 3:
        hint = ": of embeddings, (B, K, S, D), take the sum over D, relevance.sum(-1)" if array.ndim == 4 else ""
        wanted = "(S,), (K, S) or (B, K, S)" if single else "(B, K, S), because tokens are lists for each sample"
        raise ValueError(f"relevance must be {wanted}, got {given}{hint}")
    if len(array) != len(lists):
        raise ValueError(
            f"there are tokens of {len(lists)} text{'s' if len(lists) != 1 else ''}, and relevance {given} of "
            f"{len(array)}: give a list of tokens for each sample, or take one sample, relevance[0]"
        )
    if array.shape[1] == 0:
        raise ValueError(f"relevance {given} has no targets: explain at least one")
    for own in lists:
        if len(own) != array.shape[2] and (single or len(own) > array.shape[2]):
            raise ValueError(
                f"there are {len(own)} tokens and {array.shape[2]} entries of relevance: one each, special and padding "
                "tokens included"
            )
    check_finite(array, "relevance")
    return array


def _names(targets: Any, batch: int, count: int) -> list[tuple[str, ...]]:
    if targets is None:
        return [tuple(unnamed_targets(count)) if count > 1 else ("",)] * batch
    if isinstance(targets, (str, bytes)):
        raise TypeError(f"targets must be a list of {count} names, got the text {targets!r}")
    nested = len(targets) > 0 and all(isinstance(own, (list, tuple)) for own in targets)
    rows = [tuple(map(str, own)) for own in targets] if nested else [tuple(map(str, targets))] * batch
    if len(rows) != batch or any(len(row) != count for row in rows):
        raise ValueError(
            f"targets must be {count} names, or {count} for each of the {batch} samples, got {len(targets)}"
        )
    return rows


def _scores(scores: Any, batch: int, count: int) -> list[tuple[float, ...] | None]:
    if scores is None:
        return [None] * batch
    array = as_array(scores, "scores").astype(np.float64)
    if array.shape not in ((count,), (batch, count)) and array.size != 1 == count * batch:
        raise ValueError(f"scores must be ({count},) or ({batch}, {count}), got {array.shape}")
    check_finite(array, "scores")
    return [tuple(row) for row in np.broadcast_to(array.reshape(-1, count), (batch, count)).tolist()]


def _mask(mask: Any, batch: int, length: int) -> np.ndarray:
    if mask is None:
        return np.ones((batch, length), bool)
    array = as_array(mask, "mask")
    if array.shape not in ((length,), (batch, length)):
        raise ValueError(f"mask must be ({length},) or ({batch}, {length}), as attention_mask is, got {array.shape}")
    return np.broadcast_to(array != 0, (batch, length))


def _titles(names: Any, batch: int) -> list[str]:
    if names is None:
        return [f"text {i + 1}" if batch > 1 else "" for i in range(batch)]
    if isinstance(names, str) or len(names) != batch:
        raise ValueError(f"names must be a list with a name for each of the {batch} samples, got {names!r:.80}")
    return [str(name) for name in names]
