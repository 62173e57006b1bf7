"""Values of which entries may be infinite in a model that is right: what was masked with minus infinity, before an exp.

No relevance is there, since what becomes of such an entry is 0; but nothing times infinity is not a number. Plans read
these values with 0 in the place of infinity.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastlrp.capture.graph import Graph, Value, leaves

_PASS_ON = ("add", "move", "cat", "write", "detached", "custom_backward")


def masked_with_infinity(graph: Graph) -> list[Value]:
    """Values into which an infinite number is written, and sums and copies of them."""
    found: dict[Value, None] = {}
    for node in graph.nodes:
        if node.kind not in _PASS_ON or not node.output.is_differentiable or not node.output.has_batch_first:
            continue
        numbers = (leaf for leaf in leaves((node.args, node.kwargs)) if isinstance(leaf, float))
        written = node.kind == "write" and any(math.isinf(number) for number in numbers)
        if written or any(v in found for v in node.sources):
            found[node.output] = None
    return list(found)


def finite(t: Tensor) -> Tensor:
    """With 0 in the place of what is infinite."""
    return torch.where(t.isfinite(), t, 0.0)
