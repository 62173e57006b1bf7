"""Finds the softmax results that weigh others, as in attention, and composed activations."""

from __future__ import annotations

from fastlrp.capture.graph import Graph, Node, Value

_CARRIES = {"move", "write", "identity", "detached", "custom_backward"}
"""Kinds through which weights stay weights: dropout, conversions, views, what is masked out of them."""


def find_attention_weights(graph: Graph) -> None:
    """Give every softmax that a product of two activations reads the kind ``attention_weights``.

    What lies between, dropout, conversions to another dtype and moves, changes nothing. The product notes which of its
    factors the weights are, as ``node.attributes["weights"]``.

    The same for a router's softmax, of which the largest are chosen and multiply what the chosen experts computed: the
    element-wise product notes ``node.attributes["routing"]``. Chosen weights that are divided by their sum are a
    softmax of the chosen ones.
    """
    for node in graph.nodes:
        if node.kind == "mul":
            _find_routing(node)
        if node.kind != "product":
            continue
        for operand in node.sources:
            softmax = _softmax_of(operand)
            if softmax is not None:
                softmax.kind = "attention_weights"
                _read_scores_themselves(softmax)
                node.attributes["weights"] = operand


def _read_scores_themselves(softmax: Node) -> None:
    """``softmax(x - x.max(-1, keepdim=True))`` is that of ``x``, which PyTorch computes in the same way."""
    difference = softmax.args[0].producer if isinstance(softmax.args[0], Value) else None
    if difference is None or difference.operation != "sub" or difference.kwargs.get("alpha", 1) != 1:
        return
    x, largest = difference.args[:2]
    if not isinstance(x, Value) or not isinstance(largest, Value) or largest.producer is None:
        return
    axis = int(softmax.attributes["parameters"]["dim"]) % len(x.shape)
    kept = tuple(1 if i == axis else n for i, n in enumerate(x.shape))
    maximum = _attached(largest).producer
    if maximum is None or maximum.operation not in ("max", "amax") or largest.shape != kept:
        return
    if any(_attached(v) is _attached(x) for v in maximum.sources):
        softmax.args, softmax.inputs = (x, *softmax.args[1:]), (x,)


def _attached(value: Value) -> Value:
    """The value behind ``detach``."""
    while value.producer is not None and value.producer.kind == "detached":
        value = value.producer.args[0]
    return value


def _softmax_of(value: Value) -> Node | None:
    producer = value.producer
    while producer is not None and producer.kind in _CARRIES and producer.carried is not None:
        producer = producer.carried.producer
    if producer is None or producer.operation != "softmax" or producer.kind not in ("activation", "attention_weights"):
        return None
    return producer


def _find_routing(node: Node) -> None:
    """Note the factor of a product that comes from a softmax and a choice of the largest, in either order."""
    if node.attributes.get("divides"):
        return
    for operand in node.sources:
        producer, chosen, passed = operand.producer, False, []
        while producer is not None and producer.sources:
            if producer.kind not in _CARRIES:
                passed.append(producer)
                chosen = chosen or producer.operation == "topk"
                if producer.operation not in ("topk", "softmax") and not _is_normalised(producer):
                    break
            producer = producer.sources[0].producer
            if any(n.operation == "softmax" for n in passed) and chosen:
                break
        weights = [n for n in passed if n.operation == "softmax" and n.kind in ("activation", "attention_weights")]
        if not chosen or not weights:
            continue
        for found in (*weights, *(n for n in passed if _is_normalised(n))):
            found.kind = "attention_weights"
        node.attributes["routing"] = operand


def _is_normalised(node: Node) -> bool:
    """``x / x.sum(-1, keepdim=True)``."""
    if not node.attributes.get("divides") or not all(isinstance(v, Value) for v in node.args[:2]):
        return False
    x, total = node.args[:2]
    producer = total.producer
    while producer is not None and producer.kind in _CARRIES and producer.carried is not None:
        producer = producer.carried.producer
    summed = producer is not None and producer.operation == "sum" and producer.sources == (x,)
    return summed and total.shape == (*x.shape[:-1], 1)
