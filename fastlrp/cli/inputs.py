"""What is to be explained: files, folders, lists and arrays as one list of items, in a fixed order."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from fastlrp.cli import arrays, texts
from fastlrp.cli.errors import Failure, one_line
from fastlrp.cli.file_names import is_inside

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm", ".pnm")
ARRAYS = (".npy", ".npz", ".mat", ".txt", ".csv")


@dataclass(frozen=True)
class Item:
    """One sample to explain.

    Attributes:
        path: the file. sample: which sample of an array file that holds several; None for the only one.
        name: of its results, a relative path with slashes. target: its class in a list. error: why it cannot be read.
    """

    path: Path
    name: str
    sample: int | None = None
    target: int | None = None
    error: str | None = None

    @property
    def is_array(self) -> bool:
        return self.path.suffix.lower() in ARRAYS

    @property
    def is_table(self) -> bool:
        return self.path.suffix.lower() == ".csv"

    def stamp(self) -> list[int]:
        """Size and time of the last change of its file."""
        try:
            status = self.path.stat()
        except OSError:
            return [-1, -1]
        return [status.st_size, status.st_mtime_ns]

    @property
    def label(self) -> str:
        """The input as people know it."""
        return str(self.path) if self.sample is None else f"{self.path}[{self.sample}]"


def collect(options: dict[str, Any], out: Path | None = None) -> list[Item]:
    """All items, in the order of the command line; folders and their files by name.

    Args:
        out: the folder of results, which is left out of the folders that are searched.

    Raises:
        Failure: for a missing file, an unknown kind of file, an empty folder, a list that is no list.
    """
    found: list[Item] = []
    for word in options["inputs"]:
        found += _of_argument(Path(word), out)
    if options["list"] is not None:
        found += _of_list(Path(options["list"]))
    if not found:
        raise Failure("nothing to explain: give images, folders, arrays, or --list FILE")
    if options["targets"] == "class" and options["list"] is None:
        raise Failure("--targets class takes each input's class from a list: --list FILE, with lines of PATH CLASS")
    pieces = [piece for item in found for piece in _samples(item, options)]
    return list(_distinct(pieces))


def _of_argument(path: Path, out: Path | None) -> list[Item]:
    if path.is_dir():
        return _of_folder(path, out)
    if not path.exists():
        raise Failure(f"there is no file or folder {str(path)!r}")
    kind = path.suffix.lower()
    if kind not in (*IMAGES, *ARRAYS):
        raise Failure(f"{str(path)!r} is neither an image ({' '.join(IMAGES)}) nor an array ({' '.join(ARRAYS)})")
    return [Item(path, path.name)]


def _of_folder(folder: Path, out: Path | None) -> list[Item]:
    """Images and arrays in a folder and below; text is left out, because it is seldom an array."""
    if out is not None and folder.resolve() == out.resolve():
        raise Failure(f"the results would go among the inputs: name another folder than {folder} with --out")
    seen = {folder.resolve()} if out is None else {folder.resolve(), out.resolve()}
    found = []
    for base, folders, files in os.walk(folder, followlinks=True):
        real = {name: (Path(base) / name).resolve() for name in sorted(folders) if not name.startswith(".")}
        folders[:] = [name for name, place in real.items() if place not in seen]  # A link may lead back up.
        seen.update(real.values())
        for file in sorted(files):
            path = Path(base) / file
            if not file.startswith(".") and path.suffix.lower() in (*IMAGES, ".npy", ".npz", ".mat"):
                found.append(Item(path, path.relative_to(folder).as_posix()))
    if not found:
        raise Failure(f"there is no image or array in {str(folder)!r}")
    return found


def _of_list(path: Path) -> list[Item]:
    """Lines of ``path class`` or ``path``; ``#`` begins a comment. Paths are relative to the list, or else to here."""
    try:
        lines = texts.read(path).splitlines()
    except FileNotFoundError:
        raise Failure(f"--list: there is no file {str(path)!r}") from None
    except (OSError, ValueError) as error:
        raise Failure(f"--list: {path} is no text: {one_line(error)}") from error
    found = [
        _of_line(line.strip(), path, number)
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not found:
        raise Failure(f"--list: {path} names no file: expected lines of PATH CLASS or PATH")
    return found


def _of_line(line: str, source: Path, number: int) -> Item:
    words = line.rsplit(None, 1)
    has_class = len(words) == 2 and words[1].isdecimal() and not _located(line, source).exists()
    name, target = (words[0], int(words[1])) if has_class else (line, None)
    path = _located(name, source)
    error = None
    if not path.is_file():
        error = f"line {number} of {source}: there is no file {name!r}"
    elif path.suffix.lower() not in (*IMAGES, *ARRAYS):
        error = f"line {number} of {source}: {name!r} is neither an image nor an array"
    inside = name_inside(Path(name).as_posix())
    return Item(path, inside, target=target, error=error)


def name_inside(path: str) -> str:
    """A path as it stands in a list as the name of results; its last part if it leads out of the list's folder."""
    given = PurePosixPath(path)
    return str(given) if is_inside(str(given)) else given.name


def _located(name: str, source: Path) -> Path:
    beside = source.parent / name
    return beside if beside.exists() or Path(name).is_absolute() else Path(name)


def _samples(item: Item, options: dict[str, Any]) -> Sequence[Item]:
    """An item for each sample of an array file."""
    if item.error is not None or not item.is_array:
        return [item]
    try:
        count = arrays.count(item.path, options["key"], options["sample_shape"], arrays.limit(options))
    except (ValueError, TypeError, OSError) as error:
        return [replace(item, error=one_line(error))]
    if count is None:
        return [item]
    width = len(str(count - 1))
    return [replace(item, sample=i, name=f"{item.name}_{i:0{width}}") for i in range(count)]


def _distinct(items: Sequence[Item]) -> Iterator[Item]:
    """Without repetitions; results of different inputs get different names."""
    seen: set[tuple[Path, int | None, int | None]] = set()
    names: set[str] = set()
    for item in items:
        key = (item.path.absolute(), item.sample, item.target)
        if key in seen:
            continue
        seen.add(key)
        name, number = item.name, 2
        while name.casefold() in names:
            name, number = f"{item.name}~{number}", number + 1
        names.add(name.casefold())
        yield replace(item, name=name)
