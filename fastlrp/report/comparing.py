"""Several composites or models in one report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fastlrp.report.maps import Maps
from fastlrp.report.sample import Sample


def compare(ways: Mapping[str, Sequence[Sample]]) -> list[Sample]:
    """Join samples that were explained in several ways, so that the page shows two of them side by side.

    The same inputs, by their names, in the same order; layers that all ways have in the same shape are kept. The
    targets of a joined sample are those of the first way, then those of the second, and so on, with the way's name
    beside them.

    Args:
        ways: name of the composite or model -> what :func:`fastlrp.report.collect` gave for it.

    Returns:
        a :class:`Sample` for each input.

    Raises:
        ValueError: for fewer than two ways, for other inputs, for maps of the input of different shapes.
    """
    if len(ways) < 2:
        raise ValueError(f"compare needs at least two ways, got {list(ways)}: pass the samples to write as they are")
    lists = [list(samples) for samples in ways.values()]
    first = [sample.name for sample in lists[0]]
    for way, samples in zip(ways, lists, strict=True):
        if [sample.name for sample in samples] != first:
            raise ValueError(
                f"the samples of {way!r} are not those of {next(iter(ways))!r}: explain the same inputs, under the "
                f"same names and in the same order, in every way"
            )
    return [_joined(list(ways), list(samples)) for samples in zip(*lists, strict=True)]


def _joined(ways: list[str], samples: list[Sample]) -> Sample:
    first = samples[0]
    shapes = [tuple(sample.relevance["input"].shape[1:]) for sample in samples]
    if len(set(shapes)) > 1:
        raise ValueError(
            f"sample {first.name!r}: maps of the input have different shapes, "
            f"{', '.join(f'{way} {shape}' for way, shape in zip(ways, shapes, strict=True))}: write a report for each"
        )
    common = [
        name
        for name in first.layers
        if all(
            name in s.relevance and tuple(s.relevance[name].shape[1:]) == tuple(first.relevance[name].shape[1:])
            for s in samples
        )
    ]
    probable = all(sample.probabilities is not None for sample in samples)
    numbered = all(sample.classes is not None for sample in samples)
    changes: dict[str, Any] = {
        "targets": [name for sample in samples for name in sample.targets],
        "scores": [score for sample in samples for score in sample.scores],
        "relevance": {name: _stacked([sample.relevance[name] for sample in samples]) for name in common},
        "ledger": _ledgers(samples),
        "classes": [number for sample in samples for number in sample.classes or ()] if numbered else None,
        "probabilities": [p for sample in samples for p in sample.probabilities or ()] if probable else None,
        "methods": [way for way, sample in zip(ways, samples, strict=True) for _ in sample.targets],
    }
    if not numbered:  # Places in the joined list are no classes.
        changes["classes"] = [k for s in samples for k in (s.classes or range(len(s.targets)))]
    return replace(first, **changes)


def _stacked(parts: Sequence[np.ndarray | Maps]) -> np.ndarray | Maps:
    if not all(isinstance(part, Maps) for part in parts):
        return np.concatenate([np.asarray(part) for part in parts])
    joined = Maps((sum(len(part) for part in parts), *parts[0].shape[1:]))
    at = 0
    for part in parts:
        assert isinstance(part, Maps)
        joined.take(at, part)
        at += len(part)
    return joined


def _ledgers(samples: Sequence[Sample]) -> list[dict[str, Any]] | None:
    """Rows about one target each, under the targets' new places. Rows about all targets together would mix ways."""
    rows, before = [], 0
    for sample in samples:
        rows += [
            {**row, "target": before + row["target"]} for row in sample.ledger or () if row.get("target") is not None
        ]
        before += len(sample.targets)
    return rows or None
