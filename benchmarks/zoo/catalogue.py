"""All models of the zoo."""

from __future__ import annotations

from importlib.util import find_spec

from benchmarks.zoo import families, graphs, images, single
from benchmarks.zoo.case import Maker

Entry = tuple[str, str, Maker]


def entries() -> list[Entry]:
    """Group, name and maker of each model whose library is installed."""
    found = [*images.cases(), *families.cases(), *graphs.cases(), *single.cases()]
    optional = ("timm", "transformers", "torch_geometric")
    return [e for e in found if e[0].split()[0] not in optional or find_spec(e[0].split()[0])]
