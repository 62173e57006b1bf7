"""Names of classes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from fastlrp.cli import texts
from fastlrp.cli.errors import Failure


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
    lines = text.splitlines()
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise Failure(f"--labels: {path} is empty: expected one name in each line")
    return dict(enumerate(line.strip() for line in lines))


def _json(text: str, path: Path) -> dict[int, str]:
    try:
        found = json.loads(text)
        if isinstance(found, list):
            return {number: str(name) for number, name in enumerate(found)}
        return {int(number): str(name) for number, name in found.items()}
    except (ValueError, AttributeError, RecursionError) as error:
        raise Failure(f'--labels: {path} is neither a JSON list of names nor {{"0": "name", …}}: {error}') from error


def check(known: Mapping[int, str], path: str, classes: int) -> None:
    """Raise Failure if the names of a file cannot be those of a model's classes."""
    beyond = max(known, default=-1)
    if beyond >= classes or min(known, default=0) < 0:
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
