"""Where a move brings the entries of a tensor, found by running it for one sample."""

from __future__ import annotations

from torch import Tensor

from fastlrp.capture.graph import Node, Value
from fastlrp.plan.bind import bind_forward


def moved(node: Node, x: Tensor) -> Tensor | None:
    """What the node of kind ``move`` makes of ``(1, *sizes)`` of what it carries.

    None if it carries none, brings several together, or takes the batch apart.
    """
    if node.carried is None or not node.output.has_batch_first or any(v.is_tensor for v in _others(node)):
        return None
    # What else it reads are sizes, which for one sample are those of the batch.
    given = [x if v is node.carried else 1 for v in node.inputs]
    try:
        found = bind_forward(node)(*given)
    except (RuntimeError, TypeError, ValueError, IndexError):
        return None
    return found if isinstance(found, Tensor) and tuple(found.shape) == (1, *node.output.sizes) else None


def _others(node: Node) -> list[Value]:
    return [v for v in node.inputs if v is not node.carried]
