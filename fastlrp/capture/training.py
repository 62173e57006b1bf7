"""What errors say of modules in training mode, and of those that change their own tensors in the forward pass."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.utils.spectral_norm import SpectralNorm

_EVAL = "call model.eval() first"
_PREPARING = ("torch.ao.quantization.observer", "torch.ao.quantization.fake_quantize")
_WATCHES = (
    "prepares quantisation and watches what passes through it: explain the model of floats that prepare or prepare_qat "
    "was given, or a copy of that one with these weights"
)


def with_mode(message: str, model: nn.Module) -> str:
    """The message of an error of capture, and what to do where modules are in training mode or prepare quantisation."""
    # An exported program calls itself trained, and its own eval() raises.
    if isinstance(model, torch.fx.GraphModule) and "eval" in vars(model):
        found = "before torch.export: a program stays in the mode that it was exported in" if _EVAL in message else ""
    elif _EVAL in message or _WATCHES in message:
        return message
    else:
        found = _quantisation(model) or _training(model)
    return f"{message.rstrip('.')}. {found}" if found else message


def _training(model: nn.Module) -> str:
    first = next(((name, module) for name, module in model.named_modules() if module.training), None)
    if first is None:
        return ""
    return (
        f"{_named(*first) if first[0] else 'The model'} is in training mode, where modules may change their own "
        f"buffers, draw random numbers or take the statistics of the batch: {_EVAL}"
    )


def _quantisation(model: nn.Module) -> str:
    first = next(((name, module) for name, module in model.named_modules() if _prepares(module)), None)
    return "" if first is None else f"{_named(*first)} {_WATCHES}"


def _prepares(module: nn.Module) -> bool:
    """Whether it is an observer, or rounds as quantised numbers would be: told by name, as these are not imported."""
    return any(base.__module__ in _PREPARING for base in type(module).__mro__)


def _named(name: str, module: nn.Module) -> str:
    return f"Module '{name}' ({type(module).__name__})"


def why_state_changes(operation: str, owner: nn.Module) -> str:
    """What to do about a module that changes a tensor of its own in the forward pass, and reads it."""
    return next(_reasons(operation, owner))


def _reasons(operation: str, owner: nn.Module) -> Iterator[str]:
    hooks = owner._forward_pre_hooks.values()
    if type(owner).__name__ == "_SpectralNorm" or any(isinstance(hook, SpectralNorm) for hook in hooks):
        yield f"spectral_norm takes a step of its power iteration in each forward pass in training mode, so {_EVAL}"
    if _prepares(owner):
        yield f"{type(owner).__name__} {_WATCHES}"
    if operation == "embedding_renorm":
        yield (
            "an embedding with max_norm shortens the rows that it looks up. Shorten all of them once, "
            "`with torch.no_grad(): layer.weight.renorm_(layer.norm_type, 0, layer.max_norm)`, and set "
            "`layer.max_norm = None`"
        )
    if owner.training:
        yield (
            f"its module ({type(owner).__name__}) is in training mode, and may do so there alone: {_EVAL}. If it goes "
            "on doing so, keep such state outside, or pass it as an input"
        )
    yield (
        "keep such state outside, or pass it as an input; if the model changes it only the first time (RWKV rescales "
        "its weights then), run the model once before it is explained"
    )
