"""Winograd's filtering by a look at the numbers of each call, where the rules do not say that relevance is even.

What is rounded in a tile is rounded relative to the largest numbers of the tile. So a product is as exact as one by
plain sums, up to a small factor and whatever the rules above are, where in each tile no place holds much more than any
3x3 window of the tile reads: 10 to 20 times is common on the way down, a million is what a dark part of a picture
beside a bright one makes. The look reads the operand once, which takes a tenth of the filtering's time or less, and
decides for each sample and target by itself, so that a sample alone has the same bits as in a batch. What a place
holds is the sum of the sizes of all its channels, so that each sum of the product has to read most channels
(:func:`spreads`); sums of which the rule takes the reciprocal are looked at one by one as well (:meth:`Looked.sums`),
and what flows down is compared with the relevance that it makes (:meth:`Looked.scaled`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastlrp.backends.extension import loaded
from fastlrp.plan.products.by_rows import Rows, by_rows
from fastlrp.plan.products.winograd import LANES, Winograd, mixes

MOST = 32.0
"""How many times more a place may hold than a window of its tile reads. The filtering rounds by about 1e-6 of what an
even tile's window reads, so that sums of the darkest window are right to about 1e-4 of their terms, those of the others
as in an even tile."""

MOST_SHARE = 8.0
"""A sum by which more than this many times itself is divided is made again as a plain one."""

MOST_NOISE = 10.0
"""How many times the size of a tile's relevance its fullest place may hold, times the largest factor of a sum and its
largest weight. Rounding makes less than 1e-6 of these, so that no sum is wrong by more than 1e-5 of the relevance."""

LEAST_WEIGHT = 1e-2
"""Weights of a channel count where they are this part of the largest of their sum."""

OF_WEIGHT, OF_PART = 7 / 8, 1 / 4
"""Which share of all channels each sum has to read: of a layer's own weight, and of its positive or negative part,
which a trained layer leaves half of its channels out of (own weights of trained layers: all are read)."""

OF_TAP = 1 / 2
"""Which share of all channels each sum of a layer's own weight has to read at each of the nine taps. A masked kernel
may find dark what others of its window are bright in."""


def pays(weight: Tensor) -> bool:
    """Whether a layer's products may be filtered after a look, by its own weight ``(Co, Ci, 3, 3)``."""
    rows = weight.detach().abs().amax((1, 2, 3), keepdim=True)
    level = weight.detach() / torch.where(rows > 0, rows, 1)  # Batch norms scale outputs, some to nearly nothing.
    own = all(spreads(level, down, OF_WEIGHT) for down in (False, True)) and spreads(weight, True, 1 / 2)
    if not own:
        return False
    read = (level.abs() >= LEAST_WEIGHT).float().mean(1)
    return bool(((read >= OF_TAP) | (rows[:, 0] == 0)).all())


def spreads(weight: Tensor, down: bool, share: float = OF_PART) -> bool:
    """Whether each sum reads so many of all channels, or none, by as many weights as the filtering wants.

    A sum that reads few may find a tile dark that is bright in other channels.

    Args:
        weight: of a convolution, ``(Co, Ci, 3, 3)``. down: whether the sums of its transpose are meant.
    """
    if any(count % LANES for count in weight.shape[:2]) or not mixes(weight):
        return False
    sizes = weight.detach().abs().amax((2, 3))
    sizes = sizes.t() if down else sizes
    largest = sizes.amax(1, keepdim=True)
    read = (sizes >= LEAST_WEIGHT * largest).sum(1)
    return bool(((read >= share * sizes.shape[1]) | (largest[:, 0] == 0)).all())


class Looked:
    """``x -> W x + b`` of a convolution or its transpose: filtered where the numbers are even, else by plain sums.

    Args:
        filtered, plain: the same product, the second by a weight that oneDNN reads.
    """

    def __init__(self, filtered: Winograd, plain: Any) -> None:
        self._filtered, self._plain = filtered, plain
        self._sizes: Tensor | None = None

    def __call__(
        self, x: Tensor, bias: Tensor | None = None, least: Tensor | None = None, alike: bool = False
    ) -> Tensor:
        """Only for operands that :func:`fastlrp.plan.products.packed.fits` is true of.

        Args:
            least: what the result is at the least, never below zero. alike: whether places that read the same numbers
                give the same. Plain sums are and do that by themselves.
        """

        def filtered(rows: Rows) -> tuple[Tensor, None]:
            own = None if least is None else rows.of_samples(least)
            given = rows.of_samples(x)
            return self._filtered(given, bias, least=own, not_negative=least is not None, alike=alike), None

        return by_rows(x.shape[:1], self._look(x), filtered, lambda rows: self._plain(rows.of_samples(x), bias))

    def scaled(self, flow: Tensor, coefficient: Tensor, times: Tensor | None = None) -> Tensor:
        """``(B, K, Co, *S')`` times ``(B, Co, *S')`` through the weight: ``(B, K, Ci, *S)``.

        ``times``: what that is a factor of, ``(B, Ci, *S)``. A sum may read channels that are dark at a place where the
        others are bright; that is seen by what it makes of the relevance.
        """

        def filtered(rows: Rows) -> tuple[Tensor, list[bool]]:
            given, own = rows.of_flow(flow), rows.of_samples(coefficient)
            found = self.filtered(given, own)
            return found, self.tell(found, given, own, None if times is None else rows.of_samples(times))

        def plain(rows: Rows) -> Tensor:
            result: Tensor = self._plain.scaled(rows.of_flow(flow), rows.of_samples(coefficient))
            return result

        return by_rows(flow.shape[:2], self.look(flow, coefficient), filtered, plain)

    def look(self, flow: Tensor, coefficient: Tensor) -> list[bool]:
        """Of each sample and target whether what flows, times its coefficient, is even."""
        return self._look(flow.flatten(0, 1), coefficient)

    def filtered(self, flow: Tensor, coefficient: Tensor) -> Tensor:
        """:meth:`scaled` without a look."""
        return self._filtered.scaled(flow, coefficient)

    def tell(self, found: Tensor, flow: Tensor, coefficient: Tensor, times: Tensor | None) -> list[bool]:
        """Of each sample and target whether what rounding made of this result is little beside the relevance."""
        rows = flow.flatten(0, 1)
        if times is None:
            return [True] * len(rows)
        if self._sizes is None:
            self._sizes = self._filtered.sizes()
        kernel: Any = loaded()
        told: list[bool] = kernel.winograd_tells(
            found.flatten(0, 1), rows, coefficient, times, self._sizes, self._filtered.padding, MOST_NOISE
        )
        return told

    def sums(self, x: Tensor, weight: Tensor, bias: Tensor | None, divided: Tensor) -> Tensor:
        """``W x + b``, all terms of which are at least zero, as denominators of ``divided``.

        An error of the filtering is small beside the largest sums of a tile. It is small beside the relevance of the
        tile, too, where no more is divided than a few times the sum; other sums are made again, each as a plain one.

        Args:
            x: ``(B, Ci, H, W)``, whose terms with ``weight`` ``(Co, Ci, 3, 3)`` are not negative. divided: the factor
                that the coefficient has above its denominator, of the result's shape.
        """
        kernel: Any = loaded()
        even = self._look(x)
        if any(even):  # Where many sums are small, plain ones throughout cost less; some of them tell.
            few = kernel.winograd_few_small(x, weight, bias, divided, self._filtered.padding, MOST_SHARE)
            even = [a and b for a, b in zip(even, few, strict=True)]
        filtered: Callable[..., Tensor] = self._filtered

        def repaired(rows: Rows) -> tuple[Tensor, None]:
            given, above = rows.of_samples(x), rows.of_samples(divided)
            found = filtered(given, bias, not_negative=True)
            kept = kernel.winograd_repair(found, given, weight, bias, above, self._filtered.padding, MOST_SHARE)
            for row, is_kept in enumerate(kept):
                if not is_kept:
                    found[row : row + 1] = self._plain(given[row : row + 1], bias)
            return found, None

        return by_rows(x.shape[:1], even, repaired, lambda rows: self._plain(rows.of_samples(x), bias))

    def _look(self, x: Tensor, scale: Tensor | None = None) -> list[bool]:
        kernel: Any = loaded()
        found: list[bool] = kernel.winograd_even(x, scale, self._filtered.padding, MOST)
        return found
