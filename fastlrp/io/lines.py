"""Text files line by line, with the number of each line at hand for errors."""

from __future__ import annotations

import re
from typing import NoReturn

import numpy as np

from fastlrp.errors import FormatError
from fastlrp.files import PathLike

_NOT_TEXT = re.compile(rb"[^\t\n\x0b\x0c\r\x20-\x7e]")
_SHOWN = 40


class Lines:
    """The lines of a text file, taken one after another.

    Raises:
        FormatError: a byte that is no printable ASCII character.
    """

    def __init__(self, path: PathLike, data: bytes) -> None:
        self.path, self.number = path, 0
        strange = _NOT_TEXT.search(data)
        if strange is not None:
            self.number = data.count(b"\n", 0, strange.start()) + 1
            self.fail(f"byte 0x{strange[0][0]:02x} is not text: expected a plain ASCII file")
        self._lines = data.decode("ascii").split("\n")

    def fail(self, reason: str) -> NoReturn:
        """Raise an error at the line that was taken last."""
        raise FormatError(self.path, reason, line=self.number or None)

    def take(self, expected: str) -> str:
        """The next line, which must be there and not be blank."""
        line = self.take_or_end()
        if line is None:
            self.fail(f"the file ends here, expected {expected}")
        if not line.strip():
            self.fail(f"found an empty line, expected {expected}")
        return line

    def take_or_end(self) -> str | None:
        """The next line, None at the end of the file."""
        if self.number >= len(self._lines) or (self.number == len(self._lines) - 1 and not self._lines[-1]):
            return None
        self.number += 1
        return self._lines[self.number - 1]

    def end(self, after: str) -> None:
        """Nothing but blank lines may follow."""
        while (line := self.take_or_end()) is not None:
            if line.strip():
                self.fail(f"found {shown(line)} after {after}, expected the end of the file")

    def check_last(self) -> None:
        """The last line must be a whole one: all that write these files end it with a newline.

        A file that was cut off inside its last number is noticed by that alone.
        """
        if self._lines[-1].strip():
            self.number = len(self._lines)
            self.fail("the last line does not end with a newline: the file may be cut off; add one if it is whole")

    def integers(self, words: list[str], names: str, least: int = 1) -> list[int]:
        """Words as integers of at least ``least``, one for each of the blank-separated ``names``."""
        wanted = names.split()
        if len(words) != len(wanted):
            self.fail(f"found {len(words)} values, expected {len(wanted)}: {names}")
        for name, word in zip(wanted, words, strict=True):
            if not re.fullmatch(r"[+-]?[0-9]{1,18}", word):
                self.fail(f"{name} is {shown(word)}, expected an integer")
            if int(word) < least:
                self.fail(f"{name} is {word}, expected at least {least}")
        return [int(word) for word in words]

    def numbers(self, words: list[str], count: int, what: str, finite: bool = True) -> np.ndarray:
        """Words as float64, ``count`` of them. Nothing is allocated by ``count``: the words are counted first."""
        if len(words) != count:
            self.fail(f"found {len(words)} numbers, expected {count}: {what}")
        try:
            values = np.fromiter(map(_number, words), np.float64, count)
        except ValueError:
            place = next(place for place, word in enumerate(words) if not _is_number(word))
            self.fail(f"number {place + 1} of {what} is {shown(words[place])}: expected a number")
        if finite and not np.isfinite(values).all():
            place = int(np.flatnonzero(~np.isfinite(values))[0])
            self.fail(f"number {place + 1} of {what} is {shown(words[place])}: expected a finite number")
        return values


def _number(word: str) -> float:
    # Python also takes 1_000 for a number; no other program that reads these files does.
    if "_" in word:
        raise ValueError(word)
    return float(word)


def _is_number(word: str) -> bool:
    try:
        _number(word)
    except ValueError:
        return False
    return True


def shown(text: str) -> str:
    """Text for a message, cut to a readable length."""
    text = text.strip()
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")


def shortest(values: np.ndarray) -> list[str]:
    """Each float32 or float64 value with the fewest digits that read back as the same value.

    Reading goes through float64. A decimal that is shortest for a float32 can, in rare cases, be rounded twice on
    that way and end beside the value; such a value is written with the digits of its float64.
    """
    flat = values.reshape(-1)
    if flat.dtype == np.float64:
        return [repr(value) for value in flat.tolist()]
    if flat.dtype != np.float32:
        raise TypeError(f"expected float32 or float64, got {flat.dtype}")
    words = [str(value) for value in flat]
    back = np.fromiter(map(float, words), np.float64, len(words)).astype(np.float32)
    for place in np.flatnonzero(back.view(np.int32) != flat.view(np.int32)).tolist():
        words[place] = repr(float(flat[place]))
    return words
