"""Where results go: looked at before anything is computed."""

from __future__ import annotations

import os
from pathlib import Path

from fastlrp.cli.errors import Failure


def check_folder(folder: Path) -> None:
    """Raise Failure if a folder cannot be written to, or made. Makes nothing."""
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise Failure(f"--out: cannot write to {str(folder)!r}: {str(place)!r} is a file, no folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise Failure(f"--out: cannot write to {str(folder)!r}: no permission to write in {str(place)!r}")
