"""Texts with the relevance of their tokens for some targets."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fastlrp.viz.pieces import Piece


@dataclass(frozen=True, eq=False)
class TextSample:
    """One text.

    Attributes:
        name: for people, may be empty. tokens: S of them. pieces: what is shown of them. targets: K names.
        scores: K of them, if they are known. values: ``(K, S)``; what lies behind the last token is padding.
    """

    name: str
    tokens: tuple[str, ...]
    pieces: tuple[Piece, ...]
    targets: tuple[str, ...]
    scores: tuple[float, ...] | None
    values: np.ndarray

    def of_pieces(self, target: int) -> list[float]:
        """Relevance of each piece: the sum of its tokens'."""
        row = self.values[target]
        return [float(row[slice(*piece.tokens)].sum()) for piece in self.pieces]

    def total(self, target: int) -> float:
        """Sum of all tokens, special ones and padding included."""
        return float(self.values[target].sum())

    def of_special(self, target: int) -> float:
        """Sum of special tokens and padding."""
        return sum(v for v, piece in zip(self.of_pieces(target), self.pieces, strict=True) if piece.special)

    def largest(self, target: int) -> float:
        """Largest ``|R|`` of a piece that is text; of any, if none is."""
        sizes = [(abs(v), piece.special) for v, piece in zip(self.of_pieces(target), self.pieces, strict=True)]
        return max((size for size, special in sizes if not special), default=max(sizes, default=(0.0, True))[0])

    def contrast(self, first: int | str, second: int | str) -> TextSample:
        one, other = self._place(first), self._place(second)
        scores = None if self.scores is None else (self.scores[one] - self.scores[other],)
        name = f"{self.targets[one]} − {self.targets[other]}"
        return replace(self, targets=(name,), scores=scores, values=self.values[[one]] - self.values[[other]])

    def _place(self, target: int | str) -> int:
        if isinstance(target, str):
            if target not in self.targets:
                raise KeyError(f"there is no target {target!r}: there are {', '.join(map(repr, self.targets))}")
            return self.targets.index(target)
        if not -len(self.targets) <= target < len(self.targets):
            raise IndexError(f"there is no target {target}: there are {len(self.targets)}")
        return target % len(self.targets)


@dataclass(frozen=True)
class TextData:
    """Texts that are shown together.

    Attributes:
        scale: ``"shared"`` or ``"each"``. level: ``|R|`` at the ends of the colours, if it was given.
    """

    samples: tuple[TextSample, ...]
    scale: str = "shared"
    level: float | None = None

    def level_of(self, sample: TextSample, target: int) -> float:
        """``|R|`` at the ends of the colours of one text: special tokens and padding don't count, unless all are."""
        if self.level is not None:
            return self.level
        return sample.largest(target) if self.scale == "each" else self.largest()

    def largest(self) -> float:
        """The level that is enough for every text."""
        if self.level is not None:
            return self.level
        return max(each.largest(k) for each in self.samples for k in range(len(each.targets)))
