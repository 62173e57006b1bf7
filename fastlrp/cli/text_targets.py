"""``--targets`` for texts: labels, tokens by their text or number, contrasts of two, ``top5``, ``all``, ``next``."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from fastlrp.cli.errors import Failure
from fastlrp.cli.hub_text import TextReader

Asked = str | list[int | dict[int, float]]

_AGAINST = re.compile(r"\s+vs\s(?=\s*\S)")
_NEAR = 5


def read(spec: str, reader: TextReader, labels: Mapping[int, str] | None, classes: int) -> Asked:
    """What an explainer takes for it.

    Raises:
        Failure: for a label or token that the model does not have; names those that are near.
    """
    if spec in ("all", "next") or re.fullmatch(r"top[1-9]\d*", spec):
        if spec == "next" and reader.scores != "words":
            raise Failure("--targets next is for language models that score the next token")
        return spec
    if reader.scores == "spans" and not re.fullmatch(r"\d+(\s*,\s*\d+)*", spec):
        raise Failure(
            f"--targets: {spec!r}: of models that answer questions the targets are tokens of the text, by number or "
            "the best: 7,8 or top3; --output start_logits or end_logits says which end"
        )
    return [_one(word, reader, labels, classes) for word in _words(spec)]


def _words(spec: str) -> list[str]:
    """Parts between commas, but for commas in double quotes."""
    found = [""]
    for part in re.findall(r'"[^"]*"|.', spec, re.DOTALL):
        if part == ",":
            found.append("")
        else:
            found[-1] += part
    if not all(word.strip() for word in found):
        raise Failure(
            f'--targets: {spec!r} has an empty entry: separate targets by single commas, "," in quotes is one'
        )
    return found


def _one(word: str, reader: TextReader, labels: Mapping[int, str] | None, classes: int) -> int | dict[int, float]:
    parts = _AGAINST.split(word)
    if len(parts) == 2 and '"' not in word:
        # "A vs B": the one space before B parts it from "vs", a further one is the token's own.
        first, second = (_index(part, reader, labels, classes) for part in parts)
        if first == second:
            raise Failure(f"--targets: {word!r} sets a target against itself: name two different ones")
        return {first: 1.0, second: -1.0}
    return _index(word, reader, labels, classes)


def _index(word: str, reader: TextReader, labels: Mapping[int, str] | None, classes: int) -> int:
    bare = word.strip()
    quoted = len(bare) > 1 and bare[0] == bare[-1] == '"'
    if not quoted and re.fullmatch(r"\d+", bare):
        if int(bare) >= classes:
            raise Failure(f"--targets: {bare} is out of range: the model scores {classes}, 0 to {classes - 1}")
        return int(bare)
    wanted = bare[1:-1] if quoted else word
    if labels is None:
        return _token(wanted, reader, classes)
    return _label(wanted if quoted else bare, labels)


def _label(wanted: str, labels: Mapping[int, str]) -> int:
    for same in (str, str.casefold):
        found = [number for number, label in labels.items() if same(label) == same(wanted)]
        if found:
            return found[0]
    near = difflib.get_close_matches(wanted.casefold(), [label.casefold() for label in labels.values()], _NEAR, 0.4)
    names = [label for label in labels.values() if label.casefold() in near] or list(labels.values())[:8]
    raise Failure(f"--targets: the model has no label {wanted!r}: did you mean {', '.join(map(repr, names))}?")


def _token(wanted: str, reader: TextReader, classes: int) -> int:
    number, parts = reader.id_of(wanted)
    if number is not None and number < classes:
        return number
    of_parts = f", but {len(parts)} ({', '.join(map(repr, parts))})" if len(parts) > 1 else ""
    near = _near(wanted, reader)
    hint = f": near are {', '.join(map(repr, near))}" if near else ""
    raise Failure(f"--targets: {wanted!r} is no token of the vocabulary{of_parts}{hint}")


def _near(wanted: str, reader: TextReader) -> list[str]:
    """Tokens of nearly that text. Of a large vocabulary only those of the same first letter are compared."""
    key, start = wanted.strip().casefold(), wanted.strip()[:1].casefold()
    names: dict[str, str] = {}
    for token, number in reader.vocabulary.items():
        bare = token.lstrip("Ġ▁#").casefold()
        if bare.startswith(start) and abs(len(bare) - len(key)) <= 3:
            names.setdefault(bare, reader.name(number))
    return [names[bare] for bare in difflib.get_close_matches(key, names, _NEAR, 0.5)]


def named(target: Any, names: Any) -> str:
    """What a target is called in output for people."""
    if isinstance(target, dict):
        first, second = target
        other = str(names(second))
        return f"{names(first)} − {'␣' + other[1:] if other.startswith(' ') else other}"
    return str(names(target))
