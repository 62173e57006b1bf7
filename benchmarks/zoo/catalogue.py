"""All models of the zoo."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable

from benchmarks.zoo import images
from benchmarks.zoo.case import Maker

Entry = tuple[str, str, Maker]


def entries() -> list[Entry]:
    """Group, name and maker of each model whose library is installed."""
    found: Iterable[Entry] = images.cases()
    return [e for e in found if not e[0].startswith("timm") or importlib.util.find_spec("timm") is not None]
