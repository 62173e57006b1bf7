"""What was probably meant by an input that a model does not take: tried out, and added to the error."""

from __future__ import annotations

import difflib
import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastlrp.capture.graph import Graph
from fastlrp.errors import CaptureError, module_text
from fastlrp.rules import Rule
from fastlrp.rules.gradient import GRADIENTS
from fastlrp.run.inputs import Inputs


def with_hint(error: CaptureError, model: nn.Module, inputs: Inputs) -> CaptureError:
    """The error, with a sentence about the form of the input that the model takes, if one is found."""
    for attempt, text in _attempts(inputs):
        if _runs(model, attempt):
            hinted = type(error)(f"{str(error).rstrip('.')}. {text}")
            hinted.of_input = error.of_input
            return hinted
    return error


def no_module(value: Any) -> str:
    """The message for what was given in the place of a model."""
    hint = ""
    if isinstance(value, Mapping) and any(isinstance(v, Tensor) for v in value.values()):
        hint = ", the weights of a model: build the model, then model.load_state_dict(weights)"
    elif isinstance(value, type) and issubclass(value, nn.Module):
        hint = f": {value.__name__} is a class, make a model of it"
    elif isinstance(value, (str, Tensor)):
        hint = ": the model is the first argument"
    elif callable(value):
        hint = ": write a module whose forward calls it"
    return f"model must be a torch.nn.Module, got {type(value).__name__}{hint}"


def warn_of_unread(model: nn.Module, inputs: Inputs, graph: Graph) -> None:
    """Say of keyword inputs that the model does not know by name, and takes without reading them."""
    known = inspect.signature(model.forward).parameters
    reading = (node for node in graph.nodes if node.operation != "sym_size")
    read = {value for node in reading for value in node.inputs} | set(graph.outputs)
    for name, value in zip(inputs.names, graph.inputs, strict=True):
        if inputs.form == "dict" and name not in known and value not in read:
            near = difflib.get_close_matches(name, list(known), 1)
            hint = f": did you mean {near[0]!r}?" if near else ""
            warnings.warn(
                f"{type(model).__name__} takes input {name!r} without reading it; its forward has no argument of that "
                f"name{hint}",
                UserWarning,
                stacklevel=2,
            )


def warn_of_backward_hooks(model: nn.Module, rules: Iterable[Rule | None]) -> None:
    """Say of modules' backward hooks that gradients do not go through them."""
    if not any(isinstance(rule, GRADIENTS) for rule in rules):
        return
    for name, module in model.named_modules():
        hook = next(iter((*module._backward_hooks.values(), *module._backward_pre_hooks.values())), None)
        if hook is not None:
            warnings.warn(
                f"module {module_text(name)} ({type(module).__name__}) has a backward hook "
                f"({getattr(hook, '__name__', type(hook).__name__)}), which is not called here: gradients are those of "
                "the model without it. Hooks on tensors, h.register_hook(…) in the forward pass, are followed",
                UserWarning,
                stacklevel=2,
            )
            return


def _attempts(inputs: Inputs) -> Iterator[tuple[Callable[[], Any], str]]:
    tensors = inputs.tensors
    x = tensors[0]
    if inputs.form == "tensor":
        yield lambda: (x[None],), f"x {tuple(x.shape)} has no batch axis: give x[None]"
        if x.dim() == 4 and x.shape[3] in (1, 3, 4):
            yield lambda: (x.permute(0, 3, 1, 2),), "Its channels are last: give x.permute(0, 3, 1, 2)"
        if x.dim() == 3 and x.shape[2] in (1, 3, 4):
            yield (
                lambda: (x.permute(2, 0, 1)[None],),
                "It has no batch axis, and its channels are last: give x.permute(2, 0, 1)[None]",
            )
    elif inputs.form == "tuple" and len({t.shape for t in tensors}) == 1 and len(inputs.args) == len(tensors):
        many = f"x is a list of {len(tensors)}, which are taken as {len(tensors)} inputs of the model"
        yield lambda: (torch.stack(tensors),), f"{many}: for one batch give torch.stack(x)"
        yield lambda: (torch.cat(tensors),), f"{many}: for one batch give torch.cat(x)"
    elif inputs.form == "tuple" and len(tensors) == 2 and tensors[1].dtype == torch.int64 and tensors[1].dim() == 1:
        first = "x is a list of two, and the model takes the first alone: give x[0]"
        yield lambda: (x,), f"{first}. If x[1] are the samples' classes, they are targets, fastlrp.each(x[1])"


def _runs(model: nn.Module, attempt: Callable[[], Any]) -> bool:
    try:
        with torch.no_grad():
            found = model(*attempt())
    except Exception:
        return False
    first = next((t for t in torch.utils._pytree.tree_leaves(found) if isinstance(t, Tensor)), None)
    return first is not None and first.dim() > 1
