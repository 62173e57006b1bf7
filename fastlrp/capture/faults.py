"""Why a model, or what reads an operation's result, cannot be explained: chance, numbers from data, state, training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastlrp.capture.graph import Value
from fastlrp.capture.training import why_state_changes
from fastlrp.errors import module_text
from fastlrp.kinds.vocabulary import RANDOM


def random_numbers(name: str, path: str) -> str | None:
    """Why nothing that reads this operation's result can be explained, if it draws random numbers."""
    if name not in RANDOM:
        return None
    return (
        f"operation '{name}' in module {module_text(path)} draws random numbers, so that the "
        "model's output is another one each time: draw them outside and pass them as an input, or leave them out in "
        "evaluation mode"
    )


def number_from_data(fx: torch.fx.Node, name: str, path: str) -> str | None:
    """Why a graph that reads this number cannot be explained, if it is computed from activations."""
    # Here: it brings SymPy, which importing fastlrp need not wait for.
    from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

    meta = fx.meta.get("val")
    if not isinstance(meta, (torch.SymInt, torch.SymFloat, torch.SymBool)) or not free_unbacked_symbols(meta):
        return None
    return (
        f"operation '{name}' in module {module_text(path)} makes a plain number out of data (as item, "
        "nonzero and boolean indices do), for all samples of a batch together: keep it a tensor with one entry per "
        "sample, and choose entries with torch.where or fixed integer indices"
    )


def strides(fx: torch.fx.Node, name: str, path: str) -> str | None:
    """Why ``as_strided`` cannot be followed, if its operand lies in memory in another order than that of its axes."""
    operand = fx.args[0] if fx.args else None
    meta = operand.meta.get("val") if isinstance(operand, torch.fx.Node) else None
    if name != "as_strided" or not isinstance(meta, Tensor) or meta.is_contiguous():
        return None
    return (
        f"operation 'as_strided' in module {module_text(path)} reads a tensor that does not lie in memory "
        "in the order of its axes, so that its entries depend on the layout: call .contiguous() first, or use unfold"
    )


def training_mode(name: str, bound: Mapping[str, Any], path: str, of_data: bool) -> str | None:
    """Why a dropout or a norm cannot be explained: its output is random, or of the whole batch, or it changes state.

    Args:
        bound: the operation's arguments by name. of_data: whether it reads activations, not weights alone.
    """
    if "::" in name or ("dropout" not in name and name not in ("batch_norm", "instance_norm", "rrelu")):
        return None
    where = f"{name} at {module_text(path)}"
    if name == "instance_norm" or (name == "batch_norm" and not of_data):
        # They say nothing of writing, and would change the model's own statistics in each of our forward passes.
        changes = bound.get("running_mean") is not None and (bound.get("use_input_stats") or bound.get("training"))
        how = "is in training mode, so that it changes its running statistics and does not use them"
        return f"{where} {how}: call model.eval() first" if changes else None
    if name == "batch_norm" and bound.get("running_mean") is None:
        return (
            f"{where} has no running statistics and takes those of the batch, so that the output of one "
            "sample depends on the others: use track_running_stats=True, or a group or instance norm"
        )
    active = ("dropout" in name and bound.get("train") and bound.get("p", 0) > 0) or (
        name in ("batch_norm", "rrelu") and bound.get("training")
    )
    if not active:
        return None
    return (
        f"{where} is in training mode, so the model's output is random or depends on the rest of "
        "the batch: call model.eval() first"
    )


def function_of_functions(name: str, path: str) -> str:
    """Why a model that calls a higher-order operator cannot be explained, and what to write in its place."""
    way = {
        "cond": "write both branches out and choose with torch.where",
        "vmap": "write the batched operation out",
        "map": "write the loop out",
    }.get(name.split("_impl")[0], "write the operation out with plain tensor operations")
    return (
        f"the model calls {name.removesuffix('_impl')} (in '{path or 'model'}'), a function "
        f"of functions, through which relevance cannot be traced: {way}, or explain a sub-module without it"
    )


def autocast(path: str) -> str:
    """Why a module that turns autocast on itself cannot be explained."""
    return (
        f"'{path or 'model'}' turns autocast on inside its forward pass, which cannot be "
        "traced: convert the model to one dtype, model.to(torch.bfloat16), and take autocast out of it"
    )


def changed_state(tensor: str, name: str, path: str, model: nn.Module) -> str:
    """Why a model cannot be explained that reads a buffer of its own that its forward pass changes."""
    return (
        f"the forward pass changes '{tensor}', a tensor of the model's own, in place "
        f"({name} in '{path or 'model'}') and reads it, so that its output "
        f"is another one each time: {why_state_changes(name, model.get_submodule(tensor.rpartition('.')[0]))}"
    )


def complex_numbers(inputs: Iterable[Value], name: str, path: str) -> str | None:
    """Why an operation on a complex input of the model cannot be explained."""
    found = next((v for v in inputs if v.dtype is not None and v.dtype.is_complex), None)
    if found is None:
        return None
    return (
        f"operation '{name}' in module {module_text(path)} reads a complex input of the model "
        f"({found.dtype}): relevance of an input is defined for real numbers. Let the model take real and imaginary "
        "parts, torch.view_as_real(z), and make the complex tensor itself, torch.view_as_complex(x)"
    )


TAKES_GRADIENTS = (
    "its forward pass takes a gradient itself (torch.autograd.grad, backward, as models of energies and forces do), "
    "which is no graph of operations: explain the part below the gradient, the energy, or write the derivative out"
)
"""What is said of a model that runs only where gradients are recorded."""

_LEAVES_THE_TRACE = {
    "fake tensor in the exported program constant": (
        "What `.as_subclass()` gives, or what a hook or an earlier pass has put away, is not part of the graph: read "
        "the tensor itself"
    ),
    "functorch tensor": TAKES_GRADIENTS[0].upper() + TAKES_GRADIENTS[1:].replace("backward,", "torch.func.grad,"),
    "ProxyTorchDispatchMode object at": (
        "The forward pass applies a torch.autograd.Function inside of torch.vmap or another transform of torch.func, "
        "which cannot be traced: apply it to the whole batch"
    ),
    ".numpy() is not supported": "The forward pass computes with NumPy arrays: write it with tensors",
    "cache_utils": (
        "Keys and values of earlier tokens are no input: give the whole text as input_ids, and its tokens all get "
        "relevance"
    ),
}


def what_leaves_the_trace(error: Exception) -> str:
    """What to do about an error of torch.export for values that it cannot follow; empty for other errors."""
    text = str(error)
    return next((f" {way}." for sign, way in _LEAVES_THE_TRACE.items() if sign in text), "")
