"""A pickle as a list of operations: nothing is built and nothing is called here."""

from __future__ import annotations

import codecs
import io
import pickletools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_KNOWN = {known.code: known for known in pickletools.opcodes}


class PickleError(ValueError):
    """What is wrong with a pickle, and where; becomes a :class:`fastlrp.io.FormatError` with the path."""

    def __init__(self, reason: str, position: int | None = None) -> None:
        self.reason, self.position = reason, position
        super().__init__(reason)


@dataclass(frozen=True)
class Operation:
    """Name as in :mod:`pickletools`, argument, position of its first byte."""

    name: str
    argument: Any
    position: int


def operations(data: bytes) -> Iterator[Operation]:
    """Operations up to and with STOP; strings of Python 2 are decoded as latin1, so that they keep their bytes.

    Raises:
        PickleError: unknown operation, argument cut short, no STOP, or bytes behind it.
    """
    stream = io.BytesIO(data)
    while True:
        position = stream.tell()
        code = stream.read(1)
        if not code:
            raise PickleError("the file ends before the pickle does (no STOP): it is truncated", position)
        known = _KNOWN.get(code.decode("latin-1"))
        if known is None:
            raise PickleError(f"byte 0x{code[0]:02x} is no pickle operation", position)
        try:
            argument = None
            if known.name == "STRING":
                argument = _quoted(stream)
            elif known.arg is not None:
                # Readers check a declared length against what is there before they hold anything of that length.
                argument = known.arg.reader(stream)
        except (ValueError, OverflowError) as error:
            raise PickleError(f"{known.name}: {error}", position) from None
        yield Operation(known.name, argument, position)
        if known.name == "STOP":
            break
    rest = len(data) - stream.tell()
    if rest:
        raise PickleError(f"{rest} bytes follow the end of the pickle", stream.tell())


def _quoted(stream: io.BytesIO) -> str:
    """A string of protocol 0. The reader of :mod:`pickletools` takes ASCII only, arrays hold all bytes."""
    line = stream.readline()
    text = line.rstrip(b"\n").strip()
    if not line.endswith(b"\n") or len(text) < 2 or text[:1] != text[-1:] or text[:1] not in (b"'", b'"'):
        raise ValueError("expected a quoted string and a newline")
    return codecs.escape_decode(text[1:-1])[0].decode("latin-1")
