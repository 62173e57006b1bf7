"""Scores of attention that a mask of the dtype's lowest number hides, in the float64 walk.

``score + finfo.min`` is a number, and where a whole row is masked relevance comes to it. Relevance is ``value * c``:
about 1e38, or more than a float64 holds, of which the mask keeps nearly all and what is left is rounding. As ``c`` is
the same for any mask that low, the walk takes a moderate one in its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastlrp.capture.graph import Node, Value, substitute
from fastlrp.kinds.textbook import double, moderate


def moderated(nodes: list[Node], values: Mapping[Value, Any]) -> dict[Value, Tensor]:
    """The values with relevance that hold such entries, computed again with a moderate mask.

    Args:
        nodes: in the order of execution. values: all activations, float64.
    """
    found: dict[Value, Tensor] = {}
    for node in nodes:
        y = values.get(node.output)
        if not (node.output.is_differentiable and isinstance(y, Tensor) and y.is_floating_point()):
            continue
        low = y != moderate(y)
        if not bool(low.any()):
            continue
        table = {v: moderate(found.get(v, values[v])) for v in node.inputs}
        args, kwargs = (torch.utils._pytree.tree_map(moderate, double(tree)) for tree in (node.args, node.kwargs))
        again = node.call(*substitute(args, table), **substitute(kwargs, table))
        found[node.output] = torch.where(low & ~y.isnan(), moderate(again), y)
    return found
