"""A node's own function as a forward step calls it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

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
    if any(isinstance(leaf, Tensor) and leaf.is_inference() for leaf in leaves((args, kwargs))):
        return _of_inference_tensors(node, args, kwargs)
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


def _of_inference_tensors(node: Node, args: Any, kwargs: Any) -> Callable[..., Any]:
    """The same with the constants of a model made in inference mode, of which autograd takes copies alone."""

    def forward(*tensors: Any) -> Any:
        table = dict(zip(node.inputs, tensors, strict=True))
        own = _copied((args, kwargs)) if torch.is_grad_enabled() else (args, kwargs)
        return node.call(*substitute(own[0], table), **substitute(own[1], table))

    return forward


def _copied(tree: Any) -> Any:
    if isinstance(tree, (tuple, list)):
        return type(tree)(_copied(item) for item in tree)
    if isinstance(tree, dict):
        return {key: _copied(item) for key, item in tree.items()}
    return tree.clone() if isinstance(tree, Tensor) and tree.is_inference() else tree
