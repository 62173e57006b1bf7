"""Whole files: read within a limit, written so that the old file stays until the new one is complete."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from fastlrp.files import whole
from fastlrp.io.errors import FormatError

PathLike = str | os.PathLike[str]


@contextlib.contextmanager
def opened(path: PathLike, max_bytes: int) -> Iterator[tuple[BinaryIO, int]]:
    """The open file and its size.

    Raises:
        FormatError: not a regular file, empty, or larger than ``max_bytes``. OSError: as :func:`open`.
    """
    with open(path, "rb") as stream:
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise FormatError(path, "expected a regular file, found a device, socket or pipe")
        if status.st_size == 0:
            raise FormatError(path, "the file is empty")
        if status.st_size > max_bytes:
            raise FormatError(
                path, f"{status.st_size} bytes, more than max_bytes={max_bytes}: raise it if that is right"
            )
        yield stream, status.st_size


def read_bytes(path: PathLike, max_bytes: int) -> bytes:
    """Content of a file of at most ``max_bytes``; errors as :func:`opened`."""
    with opened(path, max_bytes) as (stream, size):
        return stream.read(size)


@contextlib.contextmanager
def replacing(path: PathLike) -> Iterator[BinaryIO]:
    """A stream whose content takes the place of ``path`` in one step when the block ends without an error.

    Until then, and after an error, ``path`` is what it was. A link is followed; the mode of an old file is kept.
    """
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "there is no such folder to write to", str(target.parent))
    if target.exists() and not target.is_file():
        raise ValueError(f"{target} exists and is not a regular file: it is not replaced")
    with whole(target, f".{target.name}.") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())
        if target.exists():
            shutil.copymode(target, stream.name)
