"""Finds the softmax results that weigh others, as in attention, and composed activations."""

from __future__ import annotations

from fastlrp.capture.graph import Graph, Node, Value

_CARRIES = {"move", "write", "identity"}
"""Kinds through which weights stay weights: dropout, conversions, views, what is masked out of them."""


def find_attention_weights(graph: Graph) -> None:
    """Give every softmax that a product of two activations reads the kind ``attention_weights``.

    What lies between, dropout, conversions to another dtype and moves, changes nothing. The product notes which of its
    factors the weights are, as ``node.attributes["weights"]``.
    """
    for node in graph.nodes:
        if node.kind != "product":
            continue
        for operand in node.sources:
            softmax = _softmax_of(operand)
            if softmax is not None:
                softmax.kind = "attention_weights"
                node.attributes["weights"] = operand


def _softmax_of(value: Value) -> Node | None:
    producer = value.producer
    while producer is not None and producer.kind in _CARRIES and len(producer.sources) == 1:
        producer = producer.sources[0].producer
    if producer is None or producer.operation != "softmax" or producer.kind not in ("activation", "attention_weights"):
        return None
    return producer
