"""A node's own function as a forward step calls it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastlrp.capture.graph import Constant, Node, Value, leaves, substitute


def bind_forward(node: Node) -> Callable[..., Any]:
    """The node's function of its input values alone, with constants bound."""

    def plain(tree: Any) -> Any:
        if isinstance(tree, Constant):
            return tree.tensor()
        if isinstance(tree, (tuple, list)):
            return type(tree)(plain(item) for item in tree)
        return {key: plain(item) for key, item in tree.items()} if isinstance(tree, dict) else tree

    args, kwargs, call = plain(node.args), plain(node.kwargs), node.call
    inner = [leaf for leaf in leaves((args[1:], kwargs)) if isinstance(leaf, Value)]
    if args and isinstance(args[0], Value) and not inner:
        rest = args[1:]
        if not rest and not kwargs:
            return call

        def forward_of_one(x: Any) -> Any:
            return call(x, *rest, **kwargs)

        return forward_of_one
    inputs = node.inputs

    def forward(*tensors: Any) -> Any:
        table = dict(zip(inputs, tensors, strict=True))
        return call(*substitute(args, table), **substitute(kwargs, table))

    return forward
