"""Finds what selects in state-space models: step sizes, decays, and the maps into the state and out of it.

A selective state-space layer computes ``h_t = exp(Delta_t A) h_{t-1} + Delta_t B_t u_t`` and ``y_t = C_t h_t``, whose
``Delta``, ``B`` and ``C`` are computed from its input, too. Each of its products has one factor that selects and one
that carries the sequence. MambaLRP holds the first fixed.
"""

from __future__ import annotations

from fastlrp.capture.graph import Graph, Node, Value

_PASSES = ("move", "identity", "detached", "custom_backward", "activation")


def find_selection(graph: Graph) -> None:
    """Note at each product of a state-space layer which of its factors select, ``node.attributes["selection"]``.

    A state-space layer is a module that itself calls softplus, for ``Delta``, and exp, for the decay. What selects is
    ``Delta``, what a linear layer ``x_proj`` gives (Mamba), the parts behind the first into which what a convolution
    gave is split (Mamba-2: ``u, B, C``), and what is computed from these alone.
    """
    calls = {name: {n.path for n in graph.nodes if n.operation == name} for name in ("softplus", "exp")}
    layers = calls["softplus"] & calls["exp"]
    if not layers:
        return
    selects: set[Value] = set()
    for node in graph.nodes:
        inside = node.path in layers or node.path.rpartition(".")[0] in layers
        if not inside or not node.output.is_differentiable:
            continue
        found = [v for v in node.sources if v in selects]
        if _begins(node) or (found and len(found) == len(node.sources)):
            selects.add(node.output)
        elif found and node.kind in ("mul", "product"):
            node.attributes["selection"] = tuple(found)


def _begins(node: Node) -> bool:
    if node.operation == "softplus" or node.path.endswith(".x_proj"):
        return True
    return bool(getattr(node.call, "position", 0)) and _was_convolved(node.sources[0])


def _was_convolved(value: Value) -> bool:
    node = value.producer
    while node is not None and node.kind in _PASSES and node.carried is not None:
        node = node.carried.producer
    return node is not None and node.kind == "conv"
