"""Ways down compared as wholes: what is best layer by layer need not be, since registers change their form between."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

from fastlrp.plan.forms import Affine, Way
from fastlrp.plan.paths.choose import OF_CHANGES, Chooser, Cost, estimate
from fastlrp.plan.paths.path import Path
from fastlrp.plan.paths.rates import Rates
from fastlrp.run.sparse.specialize import Outlook
from fastlrp.run.sparse.wants import Choose

OF_PATTERNS = 1.15
"""How many times as long as :func:`estimate` says sparse layers take when finding their patterns is counted too."""

OF_MIXED = 1.05
"""How many times as long as estimated a way of both dense and sparse layers is taken to need: the estimate leaves out
further steps, and blocks of targets that come together again. Set by hand, not fitted: ResNet-50 with 8 targets in
bfloat16 still goes a mixed way, in 1.05 times the time of all dense (AMD EPYC, Zen 4, busy)."""


def cheapest(
    chooser: Chooser, count: int, itemsize: int, rates: Rates | None, outlook: Callable[[Choose], Outlook]
) -> Outlook:
    """The way down that is estimated to cost least: chosen layer by layer, all sparse or all dense, as far as wishes
    allow.

    Args:
        rates: None where nothing is known of the device; then only what is wished for is sparse.
        outlook: the way down with layers chosen so.
    """
    if rates is None:
        return outlook(lambda form, above, below: chooser.way(form, above, below, count, itemsize, None))
    known, asked, estimated = rates, set[Way](), cache(estimate)  # The ways ask for the same estimates.

    def choose(form: Affine, above: float, below: float) -> Way:
        way = chooser.way(form, above, below, count, itemsize, known, estimated=estimated)
        if chooser.wish(form.path) == "auto":
            asked.add(way)
        return way

    def choose_with_changes(form: Affine, above: float, below: float) -> Way:
        return chooser.way(form, above, below, count, itemsize, known, "with changes", estimated)

    def choose_sparse(form: Affine, above: float, below: float) -> Way:
        return chooser.way(form, above, below, count, itemsize, known, "never", estimated)

    def choose_dense(form: Affine, above: float, below: float) -> Way:
        return choose(form, above, below) if chooser.wish(form.path) == "sparse" else "dense"

    mixed, pure = [outlook(choose)], []
    chosen = set(asked)
    if len(chosen) > 1 or chosen == {"dense"}:
        # Between a dense and a sparse layer a register changes its form: of layers that gain less than that costs, some
        # go the way of their neighbours.
        mixed.append(outlook(choose_with_changes))
        pure.append(outlook(choose_sparse))
    if chosen and chosen != {"dense"}:
        pure.append(outlook(choose_dense))
    ways = [(OF_MIXED, way) for way in mixed] + [(1.0, way) for way in pure]
    # What moves between layers is measured only for ways whose layers alone do not cost more than another way does.
    bounds = [factor * cost_of_whole(way, count, itemsize, known, estimated) for factor, way in ways]
    best = math.inf, 0
    for bound, place in sorted(zip(bounds, range(len(ways)), strict=True)):
        if bound > best[0]:
            break
        factor, way = ways[place]
        way.measure()
        best = min(best, (factor * cost_of_whole(way, count, itemsize, known, estimated), place))
    return ways[best[1]][1]


def cost_of_whole(
    way: Outlook, count: int, itemsize: int, rates: Rates, estimated: Callable[..., Cost] = estimate
) -> float:
    """Estimated seconds of a way down per target, with its patterns and what moves between its layers."""
    sparse, dense = ([path for path in way.paths if path.sparse == is_sparse] for is_sparse in (True, False))
    layers = OF_PATTERNS * cost_of(sparse, count, itemsize, rates, estimated)
    layers += cost_of(dense, count, itemsize, rates, estimated)
    return layers + itemsize * (way.moved + OF_CHANGES * way.changed) / rates.memory


def cost_of(
    paths: Sequence[Path], count: int, itemsize: int, rates: Rates, estimated: Callable[..., Cost] = estimate
) -> float:
    """Estimated seconds of all layers as they were chosen, per target."""
    return math.fsum(
        estimated(path.form, min(path.above, path.arriving), path.below, count, itemsize, rates).of(path.way)
        for path in paths
    )
