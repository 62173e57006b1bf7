"""From an explainer to samples of a report, block by block of targets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from fastlrp.explainer import Explainer
from fastlrp.report import ledger as ledgers
from fastlrp.report.facts import named_truth, probabilities_of
from fastlrp.report.maps import Maps
from fastlrp.report.sample import Sample
from fastlrp.targets.initial import Initial
from fastlrp.targets.target_names import checked_names, known_names
from fastlrp.targets.target_names import target_names as names_of_targets

BLOCK = 64
"""Maps of each layer that are in float32 at once, where the explainer has no ``max_memory`` of its own."""
_BEYOND = 0.02
LEDGER_TARGETS = 10
"""Targets of a sample, best score first, whose ledger ``ledger=True`` makes."""


def collect(
    explainer: Explainer,
    x: Tensor,
    targets: Any,
    *,
    images: Sequence[Any] | None = None,
    names: Sequence[str] | None = None,
    target_names: Sequence[str] | Mapping[int, str] | None = None,
    layers: str | Sequence[str] | None = None,
    ledger: bool | int = True,
    initial: Initial = "output",
    at: Any = None,
    truth: Sequence[int | str | None] | None = None,
    probability: str | None = "softmax",
    statistics: tuple[Any, Any] | None = None,
) -> list[Sample]:
    """Explain a batch and keep what a report shows of it.

    One forward pass; then targets in blocks, each kept in 16 bits per value (:class:`fastlrp.report.Maps`), so that
    float32 relevance of all targets never exists at once. Where maps have channels, these are summed. A layer without
    positions, ``(K, n)``, becomes ``(K, 1, n)``; more than two axes of positions are laid below each other.

    Args:
        explainer: a :class:`fastlrp.Explainer`.
        x: the batch ``(B, …)``, one tensor. For many inputs call this in parts and join the lists.
        targets, initial, layers, at: as for :meth:`fastlrp.ForwardRecord.relevance`.
        images: for each sample an array of uint8 ``(H, W, 3)``, ``(H, W, 1)``, ``(H, W)``, or None. Without this
            argument: x itself where it is ``(B, 1, H, W)`` or ``(B, 3, H, W)``, de-normalised with ``statistics``;
            without them each sample is stretched from its smallest to its largest value, unless all of x lies in
            [0, 1]. The page says so.
        statistics: mean and standard deviation that x was normalised with, a number or one for each channel.
        names: of the samples, by default ``sample 0`` and on.
        target_names: names of the classes (a list with one for each class, or a dict from class to name); for targets
            that are initial relevance, one name for each target. By default the names that the explainer knows
            (``labels=``, or the model's own), else the class number.
        ledger: for how many targets of each sample, best score first, the conservation ledger is made: a number, True
            for up to :data:`LEDGER_TARGETS`, False for none. For each of them the reference walks through the whole
            model in float64.
        truth: for each sample the class that it really is, by number or name, or None.
        probability: ``"softmax"`` or ``"sigmoid"`` of the scores is shown beside them where targets are classes; scores
            that are probabilities already are shown as they are; None: nothing.

    Returns:
        a :class:`Sample` for each entry of x.

    Raises:
        TypeError, ValueError, IndexError, KeyError: for what does not fit; as for the explainer.

    Example::

        from fastlrp import report

        samples = report.collect(explainer, x, "top3", layers=["3"], ledger=False)
    """
    if not isinstance(x, Tensor):
        raise TypeError(
            f"collect explains one tensor, got {type(x).__name__}: for several inputs make fastlrp.report.Sample from "
            f"explainer(x, targets, reduce='channels') yourself"
        )
    batch = x.shape[0] if x.dim() else 0
    if batch == 0:
        raise ValueError("x has no samples: a report shows at least one")
    if not isinstance(ledger, int) or ledger < 0:
        raise ValueError(f"ledger must be True, False or a number of targets, got {ledger!r}")
    pictures, note = pictures_of(x, images, statistics)
    titles = [f"sample {i}" for i in range(batch)] if names is None else checked_names(names, batch, "names")
    with explainer.forward(x) as record:
        asked = record.asked(targets, initial, at)
        labels, scores = names_of_targets(asked, target_names), asked.scores().detach().cpu().double().tolist()
        kept: list[dict[str, Maps]] = [{} for _ in range(batch)]
        block = None if explainer.max_memory is not None else max(1, BLOCK // batch)
        for positions, found in record.stream(targets, initial, layers, "channels", block, at):
            for name, relevance in _results(found, layers).items():
                maps = relevance.detach().cpu().double().numpy().reshape(_shape(tuple(relevance.shape)))
                for i in range(batch):
                    if name not in kept[i]:
                        kept[i][name] = Maps((asked.count, *maps.shape[2:]))
                    kept[i][name].put(positions.start, maps[i])
        count = LEDGER_TARGETS if ledger is True else int(ledger)
        chosen = [[k for _, k in sorted((-score, k) for k, score in enumerate(row))][:count] for row in scores]
        rows = ledgers.by_target(record, asked, chosen) if count else [None] * batch
        kind, probabilities = probabilities_of(record.scores, asked, probability)
    classes = [None] * batch if asked.index is None else asked.index.tolist()
    found_truth = named_truth(truth, batch, known_names(asked, None if asked.given is not None else target_names))
    return [
        Sample(
            titles[i],
            pictures[i],
            labels[i],
            scores[i],
            kept[i],
            rows[i],
            classes[i],
            *found_truth[i],
            probabilities[i],
            kind,
            image_note=note,
        )
        for i in range(batch)
    ]


def _results(found: Any, layers: str | Sequence[str] | None) -> dict[str, Tensor]:
    """The input first; the output only if somebody asked for it."""
    if layers is None:
        return {"input": found}
    asked = [layers] if isinstance(layers, str) else list(layers)
    rest = {name: found[name] for name in found if name not in ("input", "output")}
    last = {"output": found["output"]} if "output" in asked else {}
    return {"input": found["input"], **rest, **last}


def _shape(shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """``(B, K, …)`` as ``(B, K, h, w)``."""
    batch, count, *rest = shape
    return (batch, count, math.prod(rest[:-1]), rest[-1]) if rest else (batch, count, 1, 1)


def pictures_of(
    x: Tensor, images: Sequence[Any] | None, statistics: tuple[Any, Any] | None = None
) -> tuple[list[np.ndarray | None], str]:
    """Pictures, and what was done to show x as such."""
    if images is not None:
        if len(images) != x.shape[0]:
            raise ValueError(f"images has {len(images)} entries for {x.shape[0]} samples: give one, or None, for each")
        return [None if image is None else _coloured(np.asarray(image)) for image in images], ""
    if x.dim() != 4 or x.shape[1] not in (1, 3):
        return [None] * x.shape[0], ""
    values = x.detach().cpu().double().permute(0, 2, 3, 1).numpy()
    note = ""
    if statistics is not None:
        mean, std = (np.asarray(numbers, np.float64) for numbers in statistics)
        values, note = values * std + mean, "de-normalised"
        if values.min() < -_BEYOND or values.max() > 1 + _BEYOND:
            raise ValueError(
                f"x * std + mean goes from {values.min():.3g} to {values.max():.3g}, outside of [0, 1]: these are not "
                f"the statistics that x was normalised with"
            )
        values = values.clip(0, 1)
    if values.size and values.min() >= 0 and values.max() <= 1:
        return [_coloured(np.rint(255 * image).astype(np.uint8)) for image in values], note
    return [_coloured(_stretched(image)) for image in values], "stretched from its smallest to its largest value"


def _stretched(image: np.ndarray) -> np.ndarray:
    low, high = image.min(), image.max()
    return np.rint(255 * (image - low) / (high - low if high > low else 1.0)).astype(np.uint8)


def _coloured(image: np.ndarray) -> np.ndarray:
    """Grey as three channels; anything else as it is, for :class:`Sample` to judge."""
    if image.ndim == 2:
        image = image[:, :, None]
    return np.repeat(image, 3, axis=2) if image.ndim == 3 and image.shape[2] == 1 else image
