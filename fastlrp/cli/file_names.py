"""Names of files of results: they stand in manifests and lists, and must stay names of files in their folder."""

from __future__ import annotations

import os
import re
from pathlib import Path

_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d|conin\$|conout\$)(\..*)?", re.IGNORECASE)


def is_inside(name: object, windows: bool = os.name == "nt") -> bool:
    """Whether a name is that of a file in a folder or below it: parts between slashes, none of which leads elsewhere.

    Args:
        windows: whether backslashes, colons and names of devices have the meaning that they have there.
    """
    if not isinstance(name, str) or "\0" in name:
        return False
    parts = name.split("/")
    if windows:
        if "\\" in name or ":" in name or any(_DEVICES.fullmatch(part.rstrip(" .")) for part in parts):
            return False
        parts = [part.rstrip(" .") for part in parts]
    return not {"", ".", ".."} & set(parts)


def below(folder: Path, name: str) -> Path:
    """The path of a file of results.

    Raises:
        ValueError: if the name is no name of a file there, or a link leads out of the folder.
    """
    if not is_inside(name):
        raise ValueError(f"{name!r} is no name of a file in {str(folder)!r}")
    path = folder / name
    if not path.parent.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{str(path.parent)!r} is a link that leads out of {str(folder)!r}")
    return path
