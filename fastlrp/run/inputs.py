"""The model's input taken apart, checked, and put together again as relevance."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from numbers import Number
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from fastlrp.capture.graph import leaves
from fastlrp.run.finite import all_finite
from fastlrp.transforms import refuse_transforms

_ID_TYPES = (torch.int64, torch.int32)
"""What embeddings take."""

_PLAIN = (Number, str, bytes, type(None), Enum, torch.dtype, torch.device, torch.layout, torch.memory_format)
"""What may stand beside tensors."""

Relevance = Any
"""A tensor ``(B, K, *x.shape[1:])``; a tuple or dict of them for several inputs; a dict by path with ``layers``."""


@dataclass(eq=False)
class Inputs:
    """The model's input taken apart: tensors in order, and how to give relevance back in the same structure."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    tensors: list[Tensor]
    names: list[str]
    form: str

    @staticmethod
    def of(x: Any) -> Inputs:
        """A tensor, a tuple or list of positional inputs, or keyword inputs: a dict, any mapping, a dataclass."""
        if isinstance(x, Tensor):
            return Inputs((x,), {}, [x], ["0"], "tensor")
        if dataclasses.is_dataclass(x) and not isinstance(x, (type, Mapping)):
            x = {field.name: getattr(x, field.name) for field in dataclasses.fields(x)}
        if isinstance(x, Mapping):
            args, kwargs, form = (), dict(x), "dict"
            number = next((k for k in kwargs if not isinstance(k, str)), None)
            if number is not None:
                raise TypeError(
                    f"x is a dict with the key {number!r}: its keys are names of the model's arguments, as in "
                    "model(**x); positional inputs are a tuple"
                )
            items = [(str(k), v) for k, v in x.items()]
        elif isinstance(x, (tuple, list)):
            args, kwargs, form = tuple(x), {}, "tuple"
            items = [(str(i), v) for i, v in enumerate(x)]
        else:
            raise TypeError(
                f"x must be a tensor or array, a tuple of tensors or a dict of keyword inputs, got {type(x).__name__}"
            )
        for name, item in items:
            if not isinstance(item, Tensor) and any(isinstance(leaf, Tensor) for leaf in leaves(item)):
                raise TypeError(
                    f"input {name!r} is a {type(item).__name__} with tensors in it: give each tensor as an input of "
                    "its own, beside numbers, truth values, strings and None"
                )
            parts = [] if isinstance(item, Tensor) else tree_leaves(item)
            strange = next((v for v in parts if not isinstance(v, _PLAIN) and not callable(v)), None)
            if strange is not None:
                cache = " Of a language model give the whole text: keys and values of its beginning are no input."
                raise TypeError(
                    f"input {name!r} is or has {type(strange).__name__}: inputs are tensors, numbers, truth values, "
                    f"strings and None.{cache if 'past' in name or 'cache' in name else ''}"
                )
        found = [(k, v) for k, v in items if isinstance(v, Tensor)]
        if not found:
            lists = [k for k, v in items if isinstance(v, (list, tuple))]
            how = (
                f": {', '.join(map(repr, lists))} holds numbers, give torch.tensor(…)"
                if lists
                else ": give one at least"
            )
            raise ValueError(f"x has no tensor{how}")
        return Inputs(args, kwargs, [v for _, v in found], [k for k, _ in found], form)

    @property
    def has_floats(self) -> bool:
        """False if all that it holds are integers and truth values."""
        return any(t.is_floating_point() for t in self.tensors)

    def key(self) -> tuple[Any, ...]:
        """What a captured plan depends on: everything but the batch size and the tensors' values."""
        if self.form == "tensor":
            x = self.tensors[0]
            return (x.shape[1:], x.dtype, x.device)
        items = [*enumerate(self.args), *self.kwargs.items()]
        return tuple((k, v.shape[1:], v.dtype, v.device) if isinstance(v, Tensor) else (k, repr(v)) for k, v in items)

    def like(self, relevance: list[Tensor], reached: Sequence[bool]) -> Relevance:
        """Relevance in the structure of the input; None where an input has none (masks)."""
        if self.form == "tensor":
            return relevance[0]
        rest = iter(relevance)
        found = [next(rest) if has else None for has in reached]
        return tuple(found) if self.form == "tuple" else dict(zip(self.names, found, strict=True))


def checked(x: Any, home: Tensor | None, find_home: Callable[[], Tensor | None]) -> Inputs:
    """The input as the model takes it, detached.

    Args:
        home: a parameter that shows the model's dtype and device, if it has one; as remembered from a capture.
        find_home: looks for it again: the remembered one may have been replaced.

    Raises:
        ValueError: for NaN or infinity, no or different batch axes, another device. TypeError: for another dtype than
        the model's, a sparse tensor, or an input without floats and ids. RuntimeError: inside of a transform of
        ``torch.func``.
    """
    inputs = Inputs.of(x)
    refuse_transforms(*inputs.tensors)
    inputs.tensors = [t.detach() for t in inputs.tensors]
    batch, explainable = None, False
    for name, tensor in zip(inputs.names, inputs.tensors, strict=True):
        label = "x" if inputs.form == "tensor" else f"input {name!r}"
        if tensor.is_nested:
            raise TypeError(
                f"{label} is a nested tensor: relevance is defined for dense tensors, use x.to_padded_tensor(0.0), "
                "with a mask if the model takes one"
            )
        if tensor.layout != torch.strided:
            raise TypeError(f"{label} is {tensor.layout}: relevance is defined for dense tensors, use x.to_dense()")
        if tensor.dim() == 0:
            raise ValueError(f"{label} must have a batch axis, got a scalar")
        batch = tensor.shape[0] if batch is None else batch
        if tensor.shape[0] != batch:
            hint = f": use expand({batch}, …)" if tensor.shape[0] == 1 else ""
            if tensor.dim() == 2 and tensor.shape[0] == 2 and not tensor.is_floating_point():
                hint = ". If these are the edges of a graph with its nodes as axis 0, use fastlrp.GraphExplainer"
            raise ValueError(f"{label} has {tensor.shape[0]} samples, the first input has {batch}{hint}")
        if home is not None and (tensor.device, tensor.dtype) != (home.device, home.dtype):
            home = find_home()
        if home is not None and tensor.device != home.device:
            raise ValueError(f"{label} is on {tensor.device}, the model is on {home.device}: use x.to(…)")
        if tensor.is_meta:
            raise ValueError(f"{label} is on meta, a device without numbers: give model and input a real one")
        if tensor.is_floating_point():
            explainable = True
            if home is not None and tensor.dtype != home.dtype:
                raise TypeError(
                    f"{label} is {tensor.dtype}, the model's parameters are {home.dtype}: convert one, the input by "
                    f"x.to({home.dtype}) or the model by model.to({tensor.dtype})"
                )
            _check_finite(tensor, label)
    if not explainable and not any(t.dtype in _ID_TYPES for t in inputs.tensors):
        raise not_defined(inputs)
    return inputs


def not_defined(inputs: Inputs) -> TypeError:
    """The error for inputs that have no relevance."""
    kinds = ", ".join(str(t.dtype) for t in inputs.tensors)
    return TypeError(
        f"x is {kinds}: relevance is defined for float inputs, and for ids (torch.int64 or torch.int32) that choose "
        "rows of an embedding; convert with x.float(), or x.long() for ids, before the model gets it"
    )


def refuse_autocast(device: torch.device) -> None:
    """Raise within ``torch.autocast``, which would run single products of a plan in another dtype than its own.

    Raises:
        RuntimeError: saying what to do instead.
    """
    kind = device.type
    may = kind == "cpu" or torch.amp.is_autocast_available(kind)
    if may and torch.is_autocast_enabled(kind):
        raise RuntimeError(
            f"torch.autocast is on for {device.type}: it computes parts of a model in another dtype, and relevance is "
            f"computed in one. Explain outside of it, or within torch.autocast('{device.type}', enabled=False); for 16 "
            "bits convert model and input, model.to(torch.bfloat16)"
        )


def _check_finite(x: Tensor, label: str) -> None:
    if not all_finite(x):
        bad = ~torch.isfinite(x)
        where = [int(b) for b in bad.flatten(1).any(1).nonzero()] if x.dim() > 1 else [int(b) for b in bad.nonzero()]
        named = f"{', '.join(map(str, where[:5]))}{', …' if len(where) > 5 else ''}"
        mask = ""
        if label != "x" and torch.equal(x == -torch.inf, bad):
            mask = (
                ". If it is a mask that is added to scores of attention, give it as booleans if the model takes those, "
                "or with a number that hides as much, mask.clamp(min=-1e9)"
            )
        raise ValueError(
            f"{label} contains {int(bad.sum())} NaN or infinite entries: relevance would be NaN everywhere. "
            f"They are in sample{'s' if len(where) > 1 else ''} {named}{mask}"
        )
