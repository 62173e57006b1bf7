"""Names of classes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from fastlrp.cli import texts
from fastlrp.cli.errors import Failure

_SYNSET = re.compile(r"n\d{8}")


def read(path: Path) -> dict[int, str]:
    """A name for each class: text with one name in each line, from class 0 on; or JSON, a list or ``{"0": "name"}``.

    Raises:
        Failure: for a file that is missing, empty, or neither.
    """
    try:
        text = texts.read(path)
    except FileNotFoundError:
        raise Failure(f"--labels: there is no file {str(path)!r}") from None
    except (OSError, ValueError) as error:
        raise Failure(f"--labels: {path} is no UTF-8 text: {error}") from error
    if path.suffix.lower() == ".json":
        return _json(text, path)
    lines = text.replace("\r\n", "\n").split("\n")  # Not splitlines: names may hold what else ends lines for Python.
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise Failure(f"--labels: {path} is empty: expected one name in each line")
    return dict(enumerate(line.strip() for line in lines))


def _json(text: str, path: Path) -> dict[int, str]:
    wanted = f'--labels: {path} is neither a JSON list of names nor {{"0": "name", …}}'
    try:
        found = json.loads(text, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:
        raise Failure(f"{wanted}: {error}") from error
    if not isinstance(found, list):
        raise Failure(f"{wanted}: it holds {found!r:.60}")
    names: dict[int, str] = {}
    for key, name in found if isinstance(found, _Pairs) else enumerate(found):
        try:
            number = int(key)
        except ValueError:
            turned = ": it leads from name to number, turn it around" if isinstance(name, int) else ""
            raise Failure(f"{wanted}: {key!r} is no number{turned}") from None
        if number in names:
            raise Failure(f"{wanted}: it names class {number} twice, {names[number]!r} and {name!r:.60}")
        names[number] = _name(name, number, wanted)
    return names


class _Pairs(list[tuple[str, object]]):
    """A JSON object, with what it says twice."""


def _name(name: object, number: int, wanted: str) -> str:
    """Text; or that of ImageNet's index, ``["n02123045", "tabby"]``, number of a synset and name."""
    if isinstance(name, list) and len(name) == 2 and _SYNSET.fullmatch(str(name[0])):
        name = name[1]
    if not isinstance(name, str):
        raise Failure(f"{wanted}: class {number} is called {name!r:.60}, which is no text")
    return name


def check(known: Mapping[int, str], path: str, classes: int) -> None:
    """Raise Failure if the names of a file cannot be those of a model's classes."""
    beyond = next((number for number in known if not 0 <= number < classes), None)
    if beyond is not None:
        raise Failure(f"--labels: {path} names class {beyond}, and the model has {classes} classes, 0 to {classes - 1}")
    if not path.lower().endswith(".json") and len(known) != classes:
        raise Failure(f"--labels: {path} has {len(known)} names, and the model has {classes} classes")


class Names(Mapping[int, str]):
    """Names of all classes; the number where there is no name."""

    def __init__(self, known: Mapping[int, str] | None) -> None:
        self.known = known or {}

    def __getitem__(self, number: int) -> str:
        return self.known.get(number, str(number))

    def __contains__(self, number: object) -> bool:
        return isinstance(number, int)

    def __iter__(self) -> Iterator[int]:
        return iter(self.known)

    def __len__(self) -> int:
        return len(self.known)
