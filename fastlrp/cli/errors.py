"""What goes wrong, in one line that says what to do; and the exit codes."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
"""Exit codes: all done; some inputs failed, or the run had to stop; not possible as asked; Ctrl-C."""

_LONGEST = 600


class Failure(Exception):  # noqa: N818 - "Error" would say nothing more.
    """Ends the program with a message for people and an exit code."""

    def __init__(self, message: str, code: int = USAGE) -> None:
        super().__init__(message)
        self.code = code


class InputFailure(Exception):  # noqa: N818
    """One input cannot be explained; the others can."""


def one_line(error: BaseException) -> str:
    """An exception's message without line breaks, and with its type where the message alone says too little."""
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}"
    # str() of a KeyError is the repr of its message.
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    text = _as_options(" ".join(text.split()))
    if len(text) > _LONGEST:
        text = text[:_LONGEST] + "…"
    own = isinstance(error, (Failure, InputFailure, ValueError, TypeError, LookupError, ImportError, OSError))
    if own or type(error).__module__.startswith("fastlrp"):
        return text or type(error).__name__
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


# What the library calls an argument, and the option that sets it here.
_OPTIONS = {"name one with output=": "name one with --output", "name one with key=": "name one with --key"}


def _as_options(text: str) -> str:
    for argument, option in _OPTIONS.items():
        text = text.replace(argument, option)
    return text.replace(", or give a function of what the model returns, output=lambda out: …", "")


def printable(text: str) -> str:
    """Text without what could move the cursor or change colours: control characters as ``\\x1b``, lines as they are."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def need(module: str, package: str | None = None) -> ModuleType:
    """A module that comes with ``fastlrp[cli]``.

    Raises:
        ImportError: if it is not installed; says what to install.
    """
    try:
        return import_module(module)
    except ImportError as error:
        top = package or module.partition(".")[0]
        raise ImportError(f'the command line needs {top} here: pip install "fastlrp[cli]"') from error
