"""Dense or sparse, layer by layer: a small model of what each costs, with the rates of the device."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch

from fastlrp.plan.forms import Affine, Way
from fastlrp.plan.paths.rates import Rates

PathName = Literal["auto", "dense", "sparse"]
PATHS = ("auto", "dense", "sparse")

LEAST_TARGETS = 8
"""Below it most lanes of the sparse kernels would be empty."""

FEW_CHANNELS = 8
"""Dense products into fewer channels leave most of a vector empty: those of a picture's three take 2.4 to 3.1 times as
long as their operations say (VGG-16's and ResNet-50's first layers, AMD EPYC)."""

OF_CHANGES = 2.0
"""How many times as long as a copy a change of form takes, which turns targets and channels round: 5 to 7 GB/s where
maps are larger than the caches (ResNet-50's and VGG-16's, AMD EPYC, Zen 4, busy)."""

OF_MAPS = 4.0
"""How many times as long as a copy a sparse layer takes to write rows of all its inputs as maps: 0.9 to 2.4 GB/s
(DenseNet-121's, SqueezeNet's and MobileNet-V2's, 32 targets, AMD EPYC, Zen 4, busy)."""

OF_DEPTH = 0.65
"""How long a depthwise layer's dense kernel is with its maps, which it reads and writes once, beside other products
(MobileNet-V2's, 32 targets, AMD EPYC, Zen 4, busy: 0.6 to 0.8)."""

TILE = 4
"""Outputs of the filtering along each axis of a tile."""

OF_TILES = 2.0
"""How many times as long as plain products read and write their maps the filtering takes tiles apart and puts them
together. 3.7 GFLOP take 5.4 ms for 512 channels at 28x28 and 9.3 for 64 at 224x224 (AMD EPYC, Zen 5; Zen 4: 11 and 21
milliseconds)."""

LEAST_WORK = 1 << 26
"""Below so many operations in all, looking for dead neurons costs more than it saves (a small network's digit)."""


@dataclass(frozen=True)
class Cost:
    """Seconds of one core (or GPU) for one target of one sample, by each path.

    ``narrow``: sparse with products of bfloat16, infinite where the layer has none.
    """

    dense: float
    sparse: float
    narrow: float = math.inf

    def of(self, way: Way) -> float:
        """What one way costs."""
        return self.dense if way == "dense" else self.sparse if way == "sparse" else self.narrow


def estimate(
    form: Affine, above: float, below: float, count: int, itemsize: int, rates: Rates | None = None,
    arriving: float = 1.0,
) -> Cost:  # fmt: skip
    """What one layer costs.

    Args:
        above, below: densities of the neurons that carry relevance on the layer's output and input.
        count: targets. rates: of the device, a CPU's by default. arriving: density of what a sparse layer is given,
            where fewer than ``above``.
    """
    rates = Rates() if rates is None else rates
    products = len(form.coefficients)
    # A layer whose outputs take one of two weights has two dense products, and one sparse one.
    merged = form.merges_products or form.takes_one_of_two(form.sign is not None)
    sparse_products = 1 if merged else products
    doubled = form.sign is not None or form.factors is not None
    work = form.work * products
    outs, ins = torch.Size(form.arriving).numel(), torch.Size(form.leaving).numel()
    geometry = form.geometry
    taps = torch.Size(form.kernel).numel()
    steps_by_one = form.kernel and geometry.is_plain and geometry.stride[-1] == geometry.dilation[-1] == 1
    if steps_by_one and form.arriving[0] <= 128:
        taps //= form.kernel[-1]  # The kernel takes the taps along the last axis at once.
    padded = -(-count // rates.lanes) * rates.lanes
    filled = padded / max(1, count)
    rate = rates.sparse if padded > rates.lanes else rates.half_filled
    if itemsize == 8:
        rate /= 2
    gain = rates.filtered / _in_tiles(form) if form.is_filtered else rates.reduced if form.is_narrow else 1
    few = max(1.0, FEW_CHANNELS / form.leaving[0]) if form.kernel and form.groups == 1 else 1.0
    dense = work * few * (2 if doubled else 1) / rates.dense * itemsize / 4 / gain
    # Products of one register by several coefficients are made from maps of float32.
    halved = form.is_narrow and (products == 1 or form.gamma is not None)
    maps = (itemsize / 2 if halved else itemsize) * (3 * products * outs + 2 * products * ins) / rates.memory
    is_depthwise = form.groups == form.arriving[0] == form.leaving[0] > 1
    dense += maps * (OF_TILES if form.is_filtered else OF_DEPTH if is_depthwise else 1.0)
    given = min(above, arriving)
    if not form.kernel:  # A linear layer's weight is read once for all targets, of alive neurons alone or all of it.
        read = itemsize * sum(w.numel() for w in form.weights) / max(1, count) / rates.memory
        dense += read / 2 if form.is_narrow else read
    alive = given * (1.0 if doubled else below)
    made = form.work * sparse_products * alive * (2 if form.factors is not None else 1)
    # Tiles overlap: what they read is packed up to 1.7 times.
    moved = itemsize * (outs * given * (1 + sparse_products) + 2 * ins * below) / rates.memory
    moved += 0.0 if form.kernel else read * given / filled
    positions = ins / max(1, form.leaving[0])
    if not geometry.transposed:  # Of a position's taps those alone are there that an output was taken at.
        positions /= math.prod(geometry.stride)
    blocks = -(-form.arriving[0] // (128 * form.groups)) * -(-form.leaving[0] // (64 * form.groups)) * form.groups
    called = positions * taps * blocks * sparse_products * rates.call / padded
    if is_depthwise:  # One weight and no block of them to each.
        called /= 2
    # Where all inputs are wanted, and where there are two rows to each, what leaves is a map.
    written = OF_MAPS * 2 * itemsize * ins / rates.memory if form.kernel and (below >= 1 or doubled) else 0.0
    narrow = math.inf
    if form.has_pairs:
        narrow_rate = rates.sparse_reduced if padded > rates.lanes else rates.half_reduced
        narrow = (made / narrow_rate + moved + called) * filled + written
    return Cost(dense, (made / rate + moved + called) * filled + written, narrow)


def _in_tiles(form: Affine) -> float:
    """How many outputs the filtering makes for each that a map has, as its tiles are whole."""
    return math.prod(-(-size // TILE) * TILE / size for size in form.leaving[1:])


def _changed(form: Affine, above: float, below: float) -> float:
    """Entries of one sample and target that changes of form on both sides of a layer read and write."""
    outs, ins = torch.Size(form.arriving).numel(), torch.Size(form.leaving).numel()
    return outs * (1 + above) + ins * (1 + below)


class Chooser:
    """Which layers go the sparse way.

    Args:
        wish: ``"auto"``, ``"dense"``, ``"sparse"``, or a dict from a module path (``*`` and ``?`` match) to one of
            them.
    """

    def __init__(self, wish: PathName | Mapping[str, PathName] = "auto") -> None:
        wishes: dict[Any, Any] = dict(wish) if isinstance(wish, Mapping) else {"*": wish}
        for pattern, name in wishes.items():
            if not isinstance(pattern, str) or name not in PATHS:
                raise ValueError(
                    f"paths must be 'auto', 'dense' or 'sparse', or a dict from module path to one of them, got "
                    f"{name!r} for {pattern!r}"
                )
        self._wishes = wishes

    def check_paths(self, paths: Sequence[str]) -> None:
        """Raise ValueError if a pattern matches none of the paths of a model's layers with a weight."""
        for pattern, name in self._wishes.items():
            if pattern == "*" or any(fnmatchcase(path, pattern) for path in paths):
                continue
            close = difflib.get_close_matches(pattern, paths, 3) or paths[:8]
            examples = f"their paths are, for example, {', '.join(map(repr, close))}" if close else "there is none"
            raise ValueError(f"paths={{{pattern!r}: {name!r}}} matches no layer with a weight of the model: {examples}")

    def wish(self, module_path: str) -> PathName:
        """What is wished for a layer; the first entry that matches decides."""
        return next((name for pattern, name in self._wishes.items() if fnmatchcase(module_path, pattern)), "auto")

    @property
    def asks_for_sparse(self) -> bool:
        """Whether any layer is to go the sparse way, whatever it costs."""
        return "sparse" in self._wishes.values()

    def may_be_sparse(self, count: int, work: float = math.inf) -> bool:
        """Whether any layer could go the sparse way with this many targets and floating-point operations in all."""
        wishes = self._wishes.values()
        if self.asks_for_sparse:
            return True
        enough = count >= LEAST_TARGETS and work >= LEAST_WORK
        return enough and not ("*" in self._wishes and set(wishes) == {"dense"})

    def way(
        self, form: Affine, above: float, below: float, count: int, itemsize: int, rates: Rates | None,
        dense_pays: Literal["alone", "with changes", "never"] = "alone",
        estimated: Callable[..., Cost] = estimate,
    ) -> Way:  # fmt: skip
        """How this layer is computed. Without rates sparse only if that is wished for.

        Args:
            dense_pays: where a dense product is the better one: where it costs less, alone or together with maps made
                of rows above it, and rows of maps below; or never.
            estimated: :func:`estimate`, or the same with what it found before.
        """
        wish = self.wish(form.path)
        if wish == "dense" or (wish == "auto" and (count < LEAST_TARGETS or rates is None)):
            return "dense"
        if rates is None:
            return "sparse"
        cost = estimated(form, above, below, count, itemsize, rates)
        best: Way = "sparse bf16" if cost.narrow < cost.sparse else "sparse"
        if wish == "sparse" or dense_pays == "never":
            return best
        dense = cost.dense
        if dense_pays == "with changes":
            dense += _changed(form, above, below) * itemsize * OF_CHANGES / rates.memory
        return best if cost.of(best) < dense else "dense"

    def sparse(self, form: Affine, above: float, below: float, count: int, itemsize: int, rates: Rates | None) -> bool:
        """Whether this layer is computed for alive neurons only."""
        return self.way(form, above, below, count, itemsize, rates) != "dense"
