"""Why nothing that reads an operation's result can be explained: random numbers, numbers from data, complex numbers."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from fastlrp.kinds.vocabulary import RANDOM


def random_numbers(name: str, path: str) -> str | None:
    """Why nothing that reads this operation's result can be explained, if it draws random numbers."""
    if name not in RANDOM:
        return None
    return (
        f"operation '{name}' in module '{path or '(the model itself)'}' draws random numbers, so that the "
        "model's output is another one each time: draw them outside and pass them as an input, or leave them out in "
        "evaluation mode"
    )


def number_from_data(fx: torch.fx.Node, name: str, path: str) -> str | None:
    """Why a graph that reads this number cannot be explained, if it is computed from activations."""
    meta = fx.meta.get("val")
    if not isinstance(meta, (torch.SymInt, torch.SymFloat, torch.SymBool)) or not free_unbacked_symbols(meta):
        return None
    return (
        f"operation '{name}' in module '{path or '(the model itself)'}' makes a plain number out of data (as item, "
        "nonzero and boolean indices do), for all samples of a batch together: keep it a tensor with one entry per "
        "sample, and choose entries with torch.where or fixed integer indices"
    )


def complex_numbers(fx: torch.fx.Node, name: str, path: str) -> str | None:
    """Why an operation on activations cannot be explained, if one of its tensors is complex."""
    for meta in (n.meta.get("val") for n in (fx, *fx.all_input_nodes)):
        for leaf in meta if isinstance(meta, (tuple, list)) else (meta,):
            if isinstance(leaf, Tensor) and leaf.dtype.is_complex:
                return (
                    f"operation '{name}' in module '{path or '(the model itself)'}' has a complex tensor "
                    f"({leaf.dtype}): relevance is defined for real numbers. Write the model with real and imaginary "
                    "parts as real tensors, or explain a part of it that is real"
                )
    return None
