"""All models of the zoo."""

from __future__ import annotations

from importlib.util import find_spec

from benchmarks.zoo import families, images, single
from benchmarks.zoo.case import Maker

Entry = tuple[str, str, Maker]


def entries() -> list[Entry]:
    """Group, name and maker of each model whose library is installed."""
    found = [*images.cases(), *families.cases(), *single.cases()]
    return [e for e in found if e[0].split()[0] not in ("timm", "transformers") or find_spec(e[0].split()[0])]
