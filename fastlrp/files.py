"""Whole files: read within a limit, written so that the old file stays until the new one is complete.

All that writes results writes through here, and :mod:`fastlrp.io` reads through here.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from fastlrp.errors import FormatError

PathLike = str | os.PathLike[str]
FILE_BYTES = 2**32
UNPACKED_BYTES = 2**28


@contextmanager
def opened(path: PathLike, max_bytes: int | None) -> Iterator[tuple[BinaryIO, int]]:
    """The open file and its size.

    Raises:
        FormatError: not a regular file, empty, or larger than ``max_bytes`` (4 GiB for None). OSError: as :func:`open`.
    """
    with open(path, "rb", opener=_without_waiting) as stream:
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise FormatError(path, "expected a regular file, found a device, socket or pipe")
        if status.st_size == 0:
            raise FormatError(path, "the file is empty")
        max_bytes = FILE_BYTES if max_bytes is None else max_bytes
        if status.st_size > max_bytes:
            raise FormatError(
                path, f"{status.st_size} bytes, more than max_bytes={max_bytes}: raise it if that is right"
            )
        yield stream, status.st_size


def _without_waiting(path: str, flags: int) -> int:
    """A pipe without a writer would not open before there is one."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def unpacked_limit(packed: int, max_bytes: int | None) -> int:
    """The most bytes that may come out of ``packed`` compressed ones.

    A file of a few megabytes can unpack to thousands of times its size. Unless ``max_bytes`` says how much is right,
    that is bounded by its size.
    """
    return min(FILE_BYTES, max(UNPACKED_BYTES, 100 * packed)) if max_bytes is None else max_bytes


def read_bytes(path: PathLike, max_bytes: int | None) -> bytes:
    """Content of a file of at most ``max_bytes``; errors as :func:`opened`."""
    with opened(path, max_bytes) as (stream, size):
        return stream.read(size)


@contextmanager
def whole(path: Path, prefix: str = ".") -> Iterator[BinaryIO]:
    """A stream whose content takes the place of ``path`` in one step when the block ends without an error.

    Until then, and after an error or an interrupt, ``path`` is what it was. The temporary file lies in the same
    folder, because a file can be renamed within one file system only; its name begins with ``prefix``.

    Raises:
        FileExistsError: where a folder, a device, a socket or a pipe would be replaced.
    """
    refuse_special(path)
    temporary = path.with_name(f"{prefix}{secrets.token_hex(6)}.tmp")
    try:
        with open(temporary, "xb") as stream:
            yield stream
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def refuse_special(path: Path) -> None:
    """Raise FileExistsError for what is there and no file: renamed over, ``/dev/null`` would be one from then on."""
    if path.exists() and not path.is_file():
        raise FileExistsError(errno.EEXIST, "it is no regular file, and is not replaced", str(path))


@contextmanager
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
