"""What targets are called: by the names of their classes where these are known, by number where they are not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastlrp.targets.targets import Targets

Names = Sequence[str] | Mapping[int, str]


def target_names(asked: Targets, names: Names | None = None) -> list[list[str]]:
    """A name for each target of each sample, ``(B, K)``.

    A class is called ``"dog"``, with a position ``"dog at 3"``, a contrast ``"dog - cat"``; without a name ``"3"``, in
    a contrast ``"class 3"``. Other targets, such as initial relevance that was given, are ``"targets[0]"``, ….

    Args:
        names: of the classes; of initial relevance, one for each target. Unless given, those that the explainer knows,
            which may leave classes out.

    Raises:
        TypeError, ValueError: for names that do not fit; the message calls them ``target_names``.
    """
    if asked.index is None and asked.contrast is None:
        count = asked.count
        return [unnamed_targets(count) if names is None else checked_names(names, count, "target_names")] * asked.batch
    known = known_names(asked, names)
    places = [[""] * asked.count] * asked.batch
    if asked.position is not None:
        places = [[f" at {t}" for t in row] for row in asked.position.tolist()]
    if asked.index is not None:
        classes = asked.index.tolist()
        if names is not None:
            _check_complete(known, [c for row in classes for c in row], asked.classes)
        called = [[str(known.get(c, c)) for c in row] for row in classes]
    else:
        assert asked.contrast is not None
        index, weight = (tensor.tolist() for tensor in asked.contrast)
        called = [
            [_contrast(*terms, known) for terms in zip(*rows, strict=True)] for rows in zip(index, weight, strict=True)
        ]
    return [[name + place for name, place in zip(*rows, strict=True)] for rows in zip(called, places, strict=True)]


def unnamed_targets(count: int) -> list[str]:
    """Names of targets that nobody has named: places in ``targets``, which cannot be taken for numbers of classes."""
    return [f"targets[{k}]" for k in range(count)]


def known_names(asked: Targets, names: Names | None) -> Mapping[int, str]:
    """Name by class: those that are given, else those that the explainer knows."""
    if names is None:
        return {} if asked.labels is None else asked.labels.names
    if isinstance(names, str):
        raise TypeError(f"target_names must be a list with a name for each class, got the text {names!r}")
    # A mapping as it is: it may have a name for more classes than it lists.
    return names if isinstance(names, Mapping) else dict(enumerate(names))


def checked_names(items: Any, count: int, what: str) -> list[str]:
    """The items as text, if there are so many.

    Args:
        what: the argument's name, for errors.
    """
    if isinstance(items, (str, Mapping)):
        raise TypeError(f"{what} must be a list of {count} names, got {type(items).__name__}")
    found = [str(item) for item in items]
    if len(found) != count:
        raise ValueError(f"{what} has {len(found)} entries, {count} are needed")
    return found


def _check_complete(known: Mapping[int, str], classes: list[int], count: int) -> None:
    missing = next((c for c in classes if c not in known), None)
    if missing is not None:
        raise ValueError(
            f"target_names has no name for class {missing}: give {count} names, one for each class, or a "
            f"dict with the classes that are explained; it has {len(known)}"
        )


def _contrast(classes: list[int], weights: list[float], known: Mapping[int, str]) -> str:
    """``"dog - 2 cat"``: terms of weight 0 only fill up the contrasts of fewer classes."""
    text = ""
    for c, weight in zip(classes, weights, strict=True):
        if weight:
            sign = (" - " if weight < 0 else " + ") if text else "-" if weight < 0 else ""
            factor = "" if abs(weight) == 1 else f"{abs(weight):g} "
            name = str(known.get(c, c))
            text += sign + factor + (f"class {c}" if name == str(c) else name)
    return text or "nothing"
