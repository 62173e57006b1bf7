"""From the words of the command line to values, each with an error that shows a right one."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import click

Size = int | tuple[int, int]


class Parsed(click.ParamType):
    """A click type made of a function that raises ValueError."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name, self._parse = name, parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def numbers(text: str) -> tuple[float, ...]:
    """``0.5`` or ``0.485,0.456,0.406``."""
    wrong = f"{text!r} is not a list of numbers, such as 0.5 or 0.485,0.456,0.406"
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(wrong) from None
    if not all(map(math.isfinite, found)):
        raise ValueError(wrong)
    return found


def positive(text: str) -> float:
    """``0.5``."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not (math.isfinite(found) and found > 0):
        raise ValueError(f"{text!r} is not a number above 0, such as 0.5")
    return found


def place(text: str) -> str:
    """The name of a file or folder of results."""
    if not text.strip():
        raise ValueError("it is empty: name where results go")
    return text


def limits(text: str) -> tuple[float, float]:
    """``-1,1``."""
    found = numbers(text)
    if len(found) != 2 or not found[0] < found[1]:
        raise ValueError(f"{text!r} is not a range LOW,HIGH, such as -1,1 or 0,255")
    return found[0], found[1]


def sizes(text: str) -> tuple[int, ...]:
    """``3,224,224`` or ``3x224x224``."""
    parts = re.split("[,x]", text)
    if not all(re.fullmatch(r"[1-9]\d*", part) for part in parts):
        raise ValueError(f"{text!r} is not a list of sizes, such as 1,28,28 or 3x224x224")
    return tuple(int(part) for part in parts)


def size(text: str) -> Size:
    """``224``, or height and width ``224x320``."""
    found = sizes(text) if re.fullmatch(r"[\dx,]+", text) else ()
    if len(found) not in (1, 2):
        raise ValueError(f"{text!r} is not a size, such as 224 or HEIGHTxWIDTH 224x320")
    return found[0] if len(found) == 1 else (found[0], found[1])


def pair(text: str) -> tuple[int, int]:
    """``224`` for both, or ``224x320``."""
    found = size(text)
    return (found, found) if isinstance(found, int) else found


def words(text: str) -> tuple[str, ...]:
    """``png,npy``."""
    found = tuple(part.strip() for part in text.split(","))
    if not all(found):
        raise ValueError(f"{text!r} has an empty entry: separate names by single commas")
    return found


def assignment(text: str) -> tuple[str, Any]:
    """``epsilon=0.1``, ``zero_bias=true``, ``low=-2.1,-2.0,-1.8``, ``max_pool=ties``."""
    key, equals, value = text.partition("=")
    if not (equals and key.strip() and value.strip()):
        raise ValueError(f"{text!r} is not KEY=VALUE, such as epsilon=0.1")
    return key.strip(), _value(value.strip())


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        found = numbers(text)
    except ValueError:
        return text
    return found[0] if len(found) == 1 else found


def targets(text: str) -> str | list[int]:
    """``top5``, ``all``, ``class``, ``207,281``."""
    if text in ("all", "class") or re.fullmatch(r"top[1-9]\d*", text):
        return text
    parts = text.split(",")
    if not all(re.fullmatch(r"\d+", part.strip()) for part in parts):
        raise ValueError(f"{text!r} is none of: all, class, top5 (any number), or class numbers such as 207,281")
    found = [int(part) for part in parts]
    if len(set(found)) < len(found):
        raise ValueError(f"{text!r} names a class twice")
    return found


class Targets(Parsed):
    """Classes of images; of texts whatever was written, for their tokenizer to read."""

    def __init__(self) -> None:
        super().__init__("targets", targets)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        given = {} if ctx is None else ctx.params  # What was not given may stand there as a mark of click's.
        texts, file = given.get("text"), given.get("text_file")
        if (isinstance(texts, tuple) and texts) or isinstance(file, str):
            return value
        return super().convert(value, param, ctx)


def places(text: str) -> list[int]:
    """``-1`` or ``3,5``."""
    parts = text.split(",")
    if not all(re.fullmatch(r"\s*-?\d+\s*", part) for part in parts):
        raise ValueError(f"{text!r} is not a list of positions, such as -1 (the last token) or 3,5")
    return [int(part) for part in parts]


SIZE, PAIR, SIZES = Parsed("size", size), Parsed("size", pair), Parsed("sizes", sizes)
NUMBERS, LIMITS, WORDS = Parsed("numbers", numbers), Parsed("low,high", limits), Parsed("names", words)
POSITIVE, PLACE = Parsed("number", positive), Parsed("path", place)
ASSIGNMENT, TARGETS, PLACES = Parsed("key=value", assignment), Targets(), Parsed("positions", places)
