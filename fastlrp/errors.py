"""The errors that fastlrp raises on purpose, and how they name a module."""

from __future__ import annotations

import os


def module_text(path: str) -> str:
    """A module as errors name it: its path in quotes, or words for the model itself, which has none."""
    return f"'{path or '(the model itself)'}'"


class CaptureError(RuntimeError):
    """The model could not be captured as a graph, or does something that relevance cannot be traced through.

    Attributes:
        of_input: whether the model itself fails on the input.
    """

    of_input = False


class UnsupportedOperationError(CaptureError):
    """An operation has no rule. The message names it, its module path and the ways out."""


class NotFiniteError(ValueError):
    """A score or relevance is NaN or infinite. The message names the first layer that makes it so."""


class BackendError(RuntimeError):
    """A backend was asked for that cannot run the operation here; the message is the reason."""


class FormatError(ValueError):
    """A file is not what it should be: malformed, truncated, hostile or too large.

    Attributes:
        path: the file. reason: what was found and what was expected. line: number of the line, from 1 (text files).
        byte: position in the file, from 0 (pickles).
    """

    def __init__(
        self, path: str | os.PathLike[str], reason: str, line: int | None = None, byte: int | None = None
    ) -> None:
        self.path, self.reason, self.line, self.byte = os.fspath(path), reason, line, byte
        place = "" if line is None else f", line {line}"
        place += "" if byte is None else f", byte {byte}"
        super().__init__(f"{self.path}{place}: {reason}")

    def __reduce__(self) -> tuple[type[FormatError], tuple[str, str, int | None, int | None]]:
        # Errors cross processes (data loaders) by their arguments, which are not the message alone.
        return FormatError, (self.path, self.reason, self.line, self.byte)
