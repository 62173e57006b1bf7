"""Classes compared by one result for all of them: contrastive maps, and the top classes of each part of the input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastlrp.groups import Groups
from fastlrp.run.record import ForwardRecord
from fastlrp.run.up.direction import Direction
from fastlrp.targets.class_names import Labels, by_number


def contrastive(
    record: ForwardRecord,
    target: int | str | Sequence[int | str],
    groups: Groups,
    against: str | int | Sequence[int | str] = "others",
    at: int | None = None,
    direction: Direction = "auto",
) -> Tensor:
    """What speaks for a class and not for others: relevance of parts for one class less that for its rivals.

    With ``U_k`` the relevance per unit of score of class k and ``s_k`` its score::

        "others":  s_t (U_t - mean of U_k over k != t)      (contrastive LRP)
        a class:   s_t U_t - s_c U_c                        (the difference of two scores, explained)

    Both are combinations of one result, the relevance of the parts for all classes.

    Args:
        record: the forward pass. target: class, name, or several.
        groups, direction: see :meth:`fastlrp.ForwardRecord.relevance`.
        against: ``"others"``, or a class for all targets, or one for each.
        at: position, for an output ``(B, S, V)``.

    Returns:
        ``(B, K, G)``.

    Raises:
        ValueError: for an output that has no classes, or if there are neither one rival nor as many as targets.

    Example::

        difference = fastlrp.contrastive(record, 3, groups.patches(8), against=5)  # (2, 1, 4): why 3 rather than 5

    Source: Gu et al. 2018 (CLRP1, before what is negative is dropped); Montavon et al. 2019, sec. 10.3.
    """
    scores = _scores(record, at)
    found: Tensor = record.relevance("all", initial="one", at=at, groups=groups, direction=direction)  # (B, V, G)
    own = _classes(record, target, scores.shape[1])
    mine = scores[:, own].unsqueeze(2) * found[:, own]
    if against == "others":
        rivals = (found.sum(1, keepdim=True) - found[:, own]) / max(1, scores.shape[1] - 1)
        return mine - scores[:, own].unsqueeze(2) * rivals
    other = _classes(record, against, scores.shape[1])
    if len(other) not in (1, len(own)):
        raise ValueError(f"against must be 'others', one class or one for each of {len(own)} targets, got {against!r}")
    return mine - scores[:, other].unsqueeze(2) * found[:, other]


@dataclass(frozen=True, eq=False)
class TopClasses:
    """The classes that each part of the input brings most relevance.

    Attributes:
        classes, relevance: ``(B, G, count)``, the most first. labels: names of the classes, where they have some.
    """

    classes: Tensor
    relevance: Tensor
    labels: Labels | None = None

    def __str__(self) -> str:
        lines = []
        for sample, (classes, relevance) in enumerate(zip(self.classes.tolist(), self.relevance.tolist(), strict=True)):
            for part, (numbers, values) in enumerate(zip(classes, relevance, strict=True)):
                said = ", ".join(f"{self._name(k)} {v:+.3g}" for k, v in zip(numbers, values, strict=True))
                lines.append(f"sample {sample}, part {part}: {said}")
        return "\n".join(lines)

    def _name(self, number: int) -> str:
        return self.labels.names.get(number, str(number)) if self.labels is not None else str(number)


def top_classes(
    record: ForwardRecord, groups: Groups, count: int = 5, at: int | None = None, direction: Direction = "auto"
) -> TopClasses:
    """A table: for each part of the input the classes, or next tokens, that it brings most relevance.

    Args:
        record: the forward pass. groups, direction: see :meth:`fastlrp.ForwardRecord.relevance`.
        count: classes of each part.
        at: position, for an output ``(B, S, V)``.

    Raises:
        ValueError: for an output that has no classes, or a count that is not from 1 to their number.

    Example::

        print(fastlrp.top_classes(record, groups.patches(8), 3))  # sample 0, part 0: 7 +0.31, 2 +0.12, …
    """
    classes = _scores(record, at).shape[1]
    if not 1 <= count <= classes:
        raise ValueError(f"count must be from 1 to the number of classes, {classes}, got {count}")
    found: Tensor = record.relevance("all", at=at, groups=groups, direction=direction)
    relevance, numbers = found.mT.topk(count, -1)
    return TopClasses(numbers, relevance, record.labels)


def _scores(record: ForwardRecord, at: int | None) -> Tensor:
    scores: Tensor = record.scores
    if at is not None and scores.dim() == 3:
        return scores[:, at]
    if scores.dim() != 2:
        raise ValueError(
            f"classes are compared for an output (B, V), or (B, S, V) and a position at=, and the explained output is "
            f"{tuple(scores.shape)}: give output=lambda out: … that makes one"
        )
    return scores


def _classes(record: ForwardRecord, given: Any, count: int) -> list[int]:
    numbers = by_number([given] if isinstance(given, (int, str)) else list(given), record.labels)
    found = torch.as_tensor(numbers, dtype=torch.int64).flatten().tolist()
    wrong = [k for k in found if not -count <= k < count]
    if wrong:
        raise ValueError(f"class {wrong[0]} is out of range for an output with {count} classes")
    return found
