"""What a report shows of one input."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastlrp.report.maps import Maps

LEDGER_NUMBERS = ("arrived", "sent", "bias", "stabilizer", "dead", "error")
"""What a row of a ledger may hold beside ``layer``, ``operation``, ``rule`` and ``target``."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One explained input.

    Args:
        name: how the report calls it.
        image: ``(H, W, 3)`` uint8, what the model saw (cropped and resized as for the model, at any size), or None.
        targets: K names, in any script; the same name may occur twice.
        scores: K scores.
        relevance: layer name -> ``(K, h, w)`` floats (an array, or :class:`fastlrp.report.Maps`); ``"input"`` is
            required. A layer of n neurons without positions is ``(K, 1, n)``, and is drawn as bars.
        ledger: rows of the conservation ledger, from the output down, or None. A row is a dict: ``layer``,
            ``operation``, ``rule`` (text); ``arrived`` (relevance of the layer's output), ``sent`` (what its inputs
            got), ``bias``, ``stabilizer``, ``dead`` (what it kept), ``error`` (numbers, or None); ``target``, the
            position in ``targets`` that the row is about (without it: all targets together).
            :func:`fastlrp.report.ledger_rows` makes them of a verification.
        classes: K numbers of the classes that the targets are, which the report shows and finds them by; their places
            in the list unless given.
        truth: name of the class that the input really is, if that is known. true_class: its number.
        probabilities: K numbers in [0, 1], or None. probability: what these are, for example ``"softmax"`` of the
            scores.
        methods: K names, where the targets were explained in several ways (composites, models); see
            :func:`fastlrp.report.compare`.
        image_note: what was done to show the image, ``"stretched"`` for example.

    Raises:
        TypeError, ValueError: for shapes, lengths, types that do not agree. NaN in relevance is found by
        :func:`fastlrp.report.write`, which reads all of it.

    Example::

        from fastlrp import report

        maps = relevance[0].sum(1).numpy()  # (2, 16, 16)
        sample = report.Sample("first", None, ["cat", "dog"], [2.1, -0.3], {"input": maps})
    """

    name: str
    image: np.ndarray | None
    targets: Sequence[str]
    scores: Sequence[float]
    relevance: Mapping[str, np.ndarray | Maps]
    ledger: Sequence[Mapping[str, Any]] | None = None
    classes: Sequence[int] | None = None
    truth: str = ""
    true_class: int | None = None
    probabilities: Sequence[float] | None = None
    probability: str = "probability"
    methods: Sequence[str] | None = None
    image_note: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise TypeError(f"a sample's name must be text, got {type(self.name).__name__}")
        where = f"sample {self.name!r}"
        check_targets(self.targets, self.scores, where)
        if self.classes is not None and len(self.classes) != len(self.targets):
            raise ValueError(f"{where} has {len(self.targets)} targets and {len(self.classes)} classes")
        _check_more(self, where)
        _check_relevance(self.relevance, len(self.targets), where)
        if self.image is not None:
            _check_image(self.image, self.relevance["input"].shape, where)
        if self.ledger is not None:
            _check_ledger(self.ledger, len(self.targets), where)

    @property
    def layers(self) -> list[str]:
        """Names of the layers, the input first."""
        return ["input", *(name for name in self.relevance if name != "input")]


def check_targets(targets: Sequence[str], scores: Sequence[float], where: str) -> None:
    """Raise an error unless targets are as many texts as there are scores."""
    if isinstance(targets, str) or not all(isinstance(name, str) for name in targets):
        raise TypeError(f"{where}: targets must be a list of names (text), got {targets!r:.80}")
    if not targets:
        raise ValueError(f"{where} has no targets: give at least one")
    if len(scores) != len(targets):
        raise ValueError(f"{where} has {len(targets)} targets and {len(scores)} scores: give one score for each target")
    for name, score in zip(targets, scores, strict=True):
        if not math.isfinite(score):
            raise ValueError(f"{where}: the score of target {name!r} is {score}: scores must be finite")


def _check_more(sample: Sample, where: str) -> None:
    count, probabilities, methods = len(sample.targets), sample.probabilities, sample.methods
    if not isinstance(sample.truth, str):
        raise TypeError(
            f"{where}: truth must be the name of a class (text), got {sample.truth!r}: give its number as true_class"
        )
    if probabilities is not None:
        if len(probabilities) != count:
            raise ValueError(f"{where} has {count} targets and {len(probabilities)} probabilities")
        wrong = next((p for p in probabilities if not 0 <= p <= 1), None)
        if wrong is not None:
            raise ValueError(f"{where}: probabilities must lie in [0, 1], got {wrong}")
    if methods is not None and (isinstance(methods, str) or len(methods) != count):
        raise ValueError(
            f"{where} has {count} targets: methods must be a list with a name for each, got {methods!r:.80}"
        )


def _check_relevance(relevance: Mapping[str, Any], count: int, where: str) -> None:
    if "input" not in relevance:
        raise ValueError(f"{where}: relevance must have an entry 'input', got {list(relevance)}")
    for layer, maps in relevance.items():
        shape = tuple(getattr(maps, "shape", ()))
        if len(shape) != 3 or 0 in shape[1:]:
            raise ValueError(
                f"{where}, layer {layer!r}: relevance must be (K, h, w) = ({count}, h, w), got {shape}; sum over "
                f"channels first (reduce='channels'), and write a layer of n neurons without positions as (K, 1, n)"
            )
        if shape[0] != count:
            raise ValueError(f"{where}, layer {layer!r}: {shape[0]} maps for {count} targets: give one map for each")
        if np.dtype(maps.dtype).kind != "f":
            raise TypeError(f"{where}, layer {layer!r}: relevance must be floating point, got {maps.dtype}")


def _check_image(image: Any, shape: Sequence[int], where: str) -> None:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        got = f"{image.shape} {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(
            f"{where}: image must be an array (H, W, 3) of uint8, got {got}; from floats in [0, 1]: "
            f"(image * 255).round().astype(np.uint8)"
        )
    (height, width), (rows, columns) = image.shape[:2], shape[1:]
    if not height or not width:
        raise ValueError(f"{where}: image is empty, {image.shape}")
    # One pixel of rounding on the shorter side, or two per cent.
    if abs(math.log(height / width * columns / rows)) > max(0.02, 1.01 / min(height, width, rows, columns)):
        raise ValueError(
            f"{where}: an image of {height}x{width} and relevance of {rows}x{columns} do not lie on each other: give "
            f"the image as the model saw it, cropped and resized, or None"
        )


def _check_ledger(ledger: Sequence[Mapping[str, Any]], count: int, where: str) -> None:
    for row in ledger:
        if "layer" not in row:
            raise ValueError(f"{where}: a row of the ledger has no 'layer', only {list(row)}")
        target = row.get("target")
        if target is not None and not 0 <= target < count:
            raise ValueError(f"{where}: a row of the ledger is about target {target}, of {count}")
        for name in LEDGER_NUMBERS:
            value = row.get(name)
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{where}: the ledger's {name} of layer {row['layer']!r} is {value}")
