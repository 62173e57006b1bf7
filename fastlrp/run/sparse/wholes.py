"""Ways down compared as wholes: what is best layer by layer need not be, since registers change their form between."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from fastlrp.plan.forms import Affine, Way
from fastlrp.plan.path import Path
from fastlrp.run.sparse.choose import Chooser, Cost, estimate
from fastlrp.run.sparse.rates import Rates
from fastlrp.run.sparse.specialize import Outlook
from fastlrp.run.sparse.wants import Choose

OF_PATTERNS = 1.15
"""What a sparse way down costs with its patterns, of what is estimated for its layers."""


def cheapest(
    chooser: Chooser, count: int, itemsize: int, rates: Rates | None, outlook: Callable[[Choose], Outlook]
) -> Outlook:
    """The way down that is estimated to cost least: chosen layer by layer, all sparse or all dense, as far as wishes
    allow.

    Args:
        rates: None where nothing is known of the device; then only what is wished for is sparse.
        outlook: the way down with layers chosen so.
    """
    asked: set[Way] = set()

    def layer_by_layer(rates: Rates | None) -> Choose:
        # The gain by Winograd's filtering is for whole ways down alone: one dense layer between sparse ones costs more
        # than it saves.
        each = rates if rates is None else replace(rates, filtered=rates.reduced)

        def choose(form: Affine, above: float, below: float) -> Way:
            way = chooser.way(form, above, below, count, itemsize, each)
            if chooser.wish(form.path) == "auto":
                asked.add(way)
            return way

        return choose

    found = outlook(layer_by_layer(rates))
    if rates is None or not asked:
        return found
    candidates, chosen = [found], set(asked)
    if "dense" in chosen:
        # Layer by layer a dense product may win because the dense one below it wants everything, although sparse ones
        # all the way down would be cheaper.
        candidates.append(outlook(layer_by_layer(replace(rates, dense=rates.dense / 1e6))))
    if chosen != {"dense"}:
        kept = layer_by_layer(rates)
        candidates.append(outlook(lambda form, *densities: (
            kept(form, *densities) if chooser.wish(form.path) == "sparse" else "dense"
        )))  # fmt: skip
    return min(candidates, key=lambda way: cost_of_whole(way, count, itemsize, rates))


def cost_of_whole(way: Outlook, count: int, itemsize: int, rates: Rates) -> float:
    """Estimated seconds of a way down per target, with its patterns and what moves between its layers."""
    layers = cost_of(way.paths, count, itemsize, rates)
    moved = itemsize * way.moved / rates.memory
    return (layers + moved) * (OF_PATTERNS if any(path.sparse for path in way.paths) else 1.0)


def cost_of(paths: Sequence[Path], count: int, itemsize: int, rates: Rates) -> float:
    """Estimated seconds of all layers as they were chosen, per target."""
    return math.fsum(_estimated(path, count, itemsize, rates).of(path.way) for path in paths)


def _estimated(path: Path, count: int, itemsize: int, rates: Rates) -> Cost:
    return estimate(path.form, path.above, path.below, count, itemsize, rates, path.arriving)
