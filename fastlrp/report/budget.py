"""How finely maps are stored: as asked for, or the finest that stays below a number of bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fastlrp.report.codec import Packed, pack
from fastlrp.report.maps import Maps
from fastlrp.report.sample import Sample

LEAST_BITS = 6
"""Bits are given up first, down to these; then resolution is halved."""
LEAST_SIDE = 7
_TRIED = 48


@dataclass(frozen=True)
class Storage:
    """Bits per value, and the longest side of a map, in cells."""

    bits: int
    side: int

    def factor(self, shape: tuple[int, ...]) -> int:
        """How many positions a cell joins along each axis. A row of neurons may hold as many cells as a square."""
        h, w = shape[-2:]
        return -(-w // self.side**2) if h == 1 else -(-max(h, w) // self.side)

    def stored(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Cells of a map of this shape."""
        factor, (h, w) = self.factor(shape), shape[-2:]
        return (1 if h == 1 else -(-h // factor)), -(-w // factor)


@dataclass(frozen=True, eq=False)
class Layer:
    """All maps of one layer of one sample, packed."""

    name: str
    shape: tuple[int, int]
    stored: tuple[int, int]
    factor: int
    maps: list[Packed]

    @property
    def size(self) -> int:
        return sum(len(item.text) for item in self.maps)


def ladder(samples: Sequence[Sample], bits: int, resolution: int | None) -> Iterator[Storage]:
    """From what was asked for to ever coarser storage: fewer bits, then half the side, then again."""
    shapes = [maps.shape[1:] for sample in samples for maps in sample.relevance.values()]
    largest = max(int(np.ceil(np.sqrt(w))) if h == 1 else max(h, w) for h, w in shapes)
    side = largest if resolution is None else min(resolution, largest)
    while True:
        for fewer in range(bits, min(bits, LEAST_BITS) - 1, -1):
            yield Storage(fewer, side)
        if side <= LEAST_SIDE:
            return
        side = max(LEAST_SIDE, -(-side // 2))


def encode(samples: Sequence[Sample], storage: Storage, limit: float) -> list[list[Layer]] | None:
    """Every map of every sample; None as soon as they take more than ``limit`` bytes."""
    used, found = 0, []
    for sample in samples:
        layers = []
        for name in sample.layers:
            maps = sample.relevance[name]
            packed = []
            for k in range(len(sample.targets)):
                packed.append(_pack(sample, name, k, storage))
                used += len(packed[-1].text)
                if used > limit:
                    return None
            shape = (int(maps.shape[1]), int(maps.shape[2]))
            layers.append(Layer(name, shape, storage.stored(shape), storage.factor(shape), packed))
        found.append(layers)
    return found


def estimate(samples: Sequence[Sample], storage: Storage) -> float:
    """Bytes that :func:`encode` would need, from some maps of every layer."""
    groups = [(sample, name) for sample in samples for name in sample.layers]
    each, total = max(1, _TRIED // len(groups)), 0.0
    for sample, name in groups:
        count = len(sample.targets)
        tried = sorted(set(np.linspace(0, count - 1, min(count, each)).astype(int).tolist()))
        total += count * sum(len(_pack(sample, name, k, storage).text) for k in tried) / len(tried)
    return total


def _pack(sample: Sample, name: str, k: int, storage: Storage) -> Packed:
    maps = sample.relevance[name]
    factor = storage.factor(maps.shape)
    if isinstance(maps, Maps):
        packed = pack(maps.exact(k), storage.bits, factor, float(maps.error[k]))
        # The sum of what was put in, not of what its 16 bits say.
        return replace(packed, total=float(maps.total[k]))
    R = np.asarray(maps[k], np.float64)
    if not np.isfinite(R).all():
        bad = int((~np.isfinite(R)).sum())
        raise ValueError(
            f"sample {sample.name!r}, layer {name!r}, target {k} ({sample.targets[k]!r}): relevance has {bad} NaN or "
            f"infinite entries of {R.size}: find the layer that makes them with explainer.verify(x, targets)"
        )
    return pack(R, storage.bits, factor)
