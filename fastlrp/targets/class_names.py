"""Classes by name: ``explainer(x, ["tabby cat"])`` where the names are known."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from fastlrp.targets.spellings import Each, each

WORDS = re.compile(r"all|next|top\d+")
"""What a bare string means before it is a name."""

Names = Sequence[str] | Mapping[int, str]


class Labels:
    """The names of a model's classes.

    Args:
        names: one for each class, from 0 on; or a dict from class to name, which may leave classes out.
        strict: whether :meth:`check` checks.

    Raises:
        TypeError: for anything else.
    """

    def __init__(self, names: Names, strict: bool = True) -> None:
        if isinstance(names, str) or not isinstance(names, (Sequence, Mapping)):
            raise TypeError(f"labels must be a list of names or a dict from class to name, got {type(names).__name__}")
        self._strict = strict
        self.count = None if isinstance(names, Mapping) else len(names)
        items = names.items() if isinstance(names, Mapping) else enumerate(names)
        self.names: dict[int, str] = {}
        for number, name in items:
            if isinstance(number, bool) or not isinstance(number, int) or not isinstance(name, str):
                raise TypeError(f"labels must name classes by text, got {name!r} for {number!r}")
            self.names[number] = name
        self._whole: dict[str, list[int]] = {}
        self._parts: dict[str, list[int]] = {}
        for number, name in self.names.items():
            self._whole.setdefault(_plain(name), []).append(number)
            # ImageNet's names are lists of synonyms, "tabby, tabby cat".
            for part in {_plain(part) for part in name.split(",")}:
                self._parts.setdefault(part, []).append(number)

    def number(self, name: str) -> int:
        """The class of a name, whatever its case; or of one of the synonyms in it, between commas.

        Raises:
            ValueError: for a name that is unknown, with the nearest ones, or that several classes have.
        """
        plain = _plain(name)
        found = self._whole.get(plain) or self._parts.get(plain)
        if found is None:
            close = difflib.get_close_matches(plain, [*self._whole, *self._parts], 3, 0.5)
            close += [known for known in self._whole if plain and plain in known and known not in close][:3]
            shown = dict.fromkeys(
                repr(self._shown(c)) for c in close[:3]
            )  # Names may be close, and a part of them too.
            hint = f": did you mean {', '.join(shown)}?" if close else ""
            raise ValueError(f"no class is called {name!r}{hint}")
        if len(found) > 1:
            raise ValueError(f"the classes {', '.join(map(str, found))} are all called {name!r}: give the number")
        return found[0]

    def _shown(self, plain: str) -> str:
        return self.names[(self._whole.get(plain) or self._parts[plain])[0]]

    def check(self, classes: int) -> None:
        """Raise ValueError if the names are not those of an output with so many classes."""
        if not self._strict:  # A model's own names may be those of another output than the one that is explained.
            return
        if self.count is not None and self.count != classes:
            raise ValueError(f"labels has {self.count} names, and the explained output has {classes} classes")
        beyond = [number for number in self.names if not 0 <= number < classes]
        if beyond:
            raise ValueError(f"labels names class {beyond[0]}, and the explained output has {classes} classes")


def by_number(targets: Any, labels: Labels | None) -> Any:
    """Targets with a number in the place of each name.

    Raises:
        ValueError, TypeError: for names that are not known.
    """
    if isinstance(targets, str):
        return targets if labels is None or WORDS.fullmatch(targets) else labels.number(targets)
    if isinstance(targets, Each):
        items = targets.items
        named = isinstance(items, tuple) and any(isinstance(item, (str, Mapping)) for item in items)
        return each([by_number(item, labels) for item in items]) if named else targets
    if isinstance(targets, Mapping):
        if not any(isinstance(name, str) for name in targets):
            return targets
        weights: dict[Any, Any] = {}
        for name, weight in targets.items():
            number = _number(name, labels) if isinstance(name, str) else name
            weights[number] = weights[number] + weight if number in weights else weight
        return weights
    if isinstance(targets, (list, tuple)) and any(isinstance(item, (str, Mapping)) for item in targets):
        return [_number(t, labels) if isinstance(t, str) else by_number(t, labels) for t in targets]
    return targets


def _number(name: str, labels: Labels | None) -> int:
    if labels is not None:
        return labels.number(name)
    if name.strip().lstrip("-").isdecimal():
        raise TypeError(f"targets given as classes must be integers, got the text {name!r}: write {int(name)}")
    raise TypeError(
        f"targets names the class {name!r}, and the explainer knows no names: give them, "
        "Explainer(model, labels=[…]), or the class as an integer"
    )


def of_model(model: nn.Module) -> Labels | None:
    """The names in a model's own ``config.id2label``, as models of transformers have them; None without."""
    names = getattr(getattr(model, "config", None), "id2label", None)
    if not isinstance(names, Mapping) or not names:
        return None
    try:
        found = {int(number): str(name) for number, name in names.items()}
    except (TypeError, ValueError):
        return None
    invented = all(name == f"LABEL_{number}" for number, name in found.items())
    return None if invented else Labels(found, strict=False)


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").split())
