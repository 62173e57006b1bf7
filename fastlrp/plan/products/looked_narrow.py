"""The way down of layers with products of bfloat16: by the filtering where a look at the numbers allows it.

In float32 the filtering is as fast as a product of bfloat16 is, or faster, and nearly as exact as plain sums
(:mod:`fastlrp.plan.products.looked`). A sample and target for which some term of the rule is not even takes products of
bfloat16 for all terms, which then add up before they are rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastlrp.plan.products import packed, reduced
from fastlrp.plan.products.by_rows import Rows, by_rows
from fastlrp.plan.products.looked import Looked

LaidOut = Callable[[Tensor], Any]
"""Of a weight its transpose in the form that products want; what is not ``Looked`` leaves all to bfloat16. It reads the
weight when it is first needed, until when the weight has to live."""

Terms = Sequence[tuple[Any, Tensor]]
"""Transposes of weights, each with its coefficient ``(B, Co, *S')``."""


LEAST_CHANNELS, LEAST_TILES = 128, 40
"""From how many channels and tiles of a map on the filtering is as fast as products of bfloat16 by AVX512-BF16. Two
products down and their looks, for one target, times as long (AMD EPYC, one core): 64 channels at 224x224 and 56x56 1.17
and 1.25, 128 at 112x112 and 28x28 1.02 and 1.04, 256 at 56x56 0.87, 512 at 28x28 0.70, 256 at 14x14 1.3."""


def pays(weight: Tensor, size: tuple[int, ...]) -> bool:
    """Whether what flows down by a weight ``(Co, Ci, 3, 3)`` goes so. ``size``: of the layer's output, ``(H, W)``."""
    height, width = size
    return min(weight.shape[:2]) >= LEAST_CHANNELS and -(-height // 4) * -(-width // 4) >= LEAST_TILES


def transposed(
    laid_out: LaidOut, weight: Tensor, positive: Tensor | None, negative: Any, narrow: Callable[..., Tensor]
) -> Callable[..., Tensor]:
    """``(register, u, v, input, times) -> c``; ``times``: of :meth:`Looked.scaled`.

    Args:
        weight: of the first term. positive: of the second. negative: the transpose of what the second has for inputs
            below zero, only where the input's sign decides.
        narrow: the same by products of bfloat16.
    """

    def through(flow: Tensor, u: Tensor | None, v: Tensor | None, x: Any, times: Tensor | None = None) -> Tensor:
        signed = v is not None and negative is not None and isinstance(x, Tensor)
        given = [
            *((None if w is None else laid_out(w), c) for w, c in ((weight, u), (positive, v))),
            (negative, v if signed else None),
        ]
        terms = [(product, coefficient) for product, coefficient in given if coefficient is not None]

        def summed(results: list[Tensor], rows: Rows) -> Tensor:
            *others, last = results
            if signed:
                *others, above = others
                last = _by_sign(x, above, last, rows)
            return _added([*others, last])

        def narrowed(rows: Rows) -> Tensor:
            own = [rows.of_samples(t) if isinstance(t, Tensor) else t for t in (u, v, x)]
            return narrow(rows.of_flow(flow), *own)

        return where_even(flow, terms, times, summed, narrowed)

    return through


def transposed_of_both(
    laid_out: LaidOut, positives: Sequence[Tensor], negatives: Sequence[Any], narrow: Callable[..., Tensor]
) -> Callable[..., Tensor]:
    """``(register, vs, input, times) -> c``, the sum of what each weight and its coefficient v give.

    Args:
        positives: of each weight. negatives: the transposes of the other parts, where the input's sign decides.
        narrow: the same by products of bfloat16.
    """

    def through(flow: Tensor, vs: Sequence[Tensor], x: Any, times: Tensor | None = None) -> Tensor:
        signed = isinstance(x, Tensor) and negatives[0] is not None
        terms = [(laid_out(w), v) for w, v in zip(positives, vs, strict=True)]
        terms += list(zip(negatives, vs, strict=True)) if signed else []

        def summed(results: list[Tensor], rows: Rows) -> Tensor:
            above = _added(results[: len(vs)])
            return _by_sign(x, above, _added(results[len(vs) :]), rows) if signed else above

        def narrowed(rows: Rows) -> Tensor:
            own = [rows.of_samples(v) for v in vs]
            return narrow(rows.of_flow(flow), own, rows.of_samples(x) if isinstance(x, Tensor) else x)

        return where_even(flow, terms, times, summed, narrowed)

    return through


def _added(results: list[Tensor]) -> Tensor:
    total, *others = results
    for other in others:
        total.add_(other)
    return total


def _by_sign(x: Tensor, above: Tensor, below: Tensor, rows: Rows) -> Tensor:
    """What an input above zero gets, or one below it; ``rows``: that these are of."""
    sign = rows.of_samples(x).unsqueeze(1)
    return torch.where(sign > 0, above, below).masked_fill_(sign == 0, 0)


def where_even(
    flow: Tensor,
    terms: Terms,
    times: Tensor | None,
    summed: Callable[[list[Tensor], Rows], Tensor],
    narrow: Callable[[Rows], Tensor],
) -> Tensor:
    """``(B, K, Ci, *S)``: of each sample and target what the filtering makes of all terms, or what ``narrow`` gives.

    Args:
        flow: ``(B, K, Co, *S')``, of float32 or bfloat16. times: what the result is a factor of, ``(B, Ci, *S)``.
        summed: of the terms' results for these rows. narrow: the same by products of bfloat16.
    """
    if not all(isinstance(product, Looked) for product, _ in terms):
        return narrow(Rows(flow.shape[:2]))
    wide = reduced.widened(flow)
    if not all(packed.fits(t) for t in (wide, *(coefficient for _, coefficient in terms))):
        return narrow(Rows(flow.shape[:2]))
    times = times if times is not None and packed.fits(times) else None
    even = [True] * (flow.shape[0] * flow.shape[1])
    for product, coefficient in terms:
        found = product.look(wide, coefficient)
        even = [a and b for a, b in zip(even, found, strict=True)]

    def filtered(rows: Rows) -> tuple[Tensor, list[bool]]:
        given = rows.of_flow(wide)
        own_times = None if times is None else rows.of_samples(times)
        told, results = [True] * (given.shape[0] * given.shape[1]), []
        for product, coefficient in terms:
            own = rows.of_samples(coefficient)
            results.append(product.filtered(given, own))
            found = product.tell(results[-1], given, own, own_times)
            told = [a and b for a, b in zip(told, found, strict=True)]
            if not any(told):
                return results[-1], told
        return summed(results, rows), told

    def rest(rows: Rows) -> Tensor:
        return narrow(rows) if rows.numbers is None else reduced.widened(narrow(rows))

    return by_rows(flow.shape[:2], even, filtered, rest)
