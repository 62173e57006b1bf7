"""Files that are whole, or as they were before: all that writes results writes through here."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole(path: Path, prefix: str = ".") -> Iterator[BinaryIO]:
    """A stream whose content takes the place of ``path`` in one step when the block ends without an error.

    Until then, and after an error or an interrupt, ``path`` is what it was. The temporary file lies in the same
    folder, because a file can be renamed within one file system only; its name begins with ``prefix``.
    """
    temporary = path.with_name(f"{prefix}{secrets.token_hex(6)}.tmp")
    try:
        with open(temporary, "xb") as stream:
            yield stream
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
