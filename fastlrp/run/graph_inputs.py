"""The input of a model without a batch axis: tensors to explain, and those that say how the sample is built."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fastlrp.run.inputs import Inputs, Relevance, checked


@dataclass(eq=False)
class GraphInputs(Inputs):
    """One sample. ``tensors`` and ``names`` are those that may have relevance, with a batch axis of size 1.

    Attributes:
        fixed: positions and names of the arguments that plans are made for. places: number of each explained tensor
            among all tensors, as they were given. count: of all tensors.
    """

    fixed: tuple[int | str, ...] = ()
    places: list[int] = field(default_factory=list)
    count: int = 0

    def key(self) -> tuple[Any, ...]:
        """What a captured plan depends on: sizes, and the entries of what is fixed."""
        items = [*enumerate(self.args), *self.kwargs.items()]
        return tuple((k, *_traits(v, k in self.fixed)) if isinstance(v, Tensor) else (k, repr(v)) for k, v in items)

    def like(self, relevance: list[Tensor], reached: Sequence[bool]) -> Relevance:
        """Relevance in the structure of the input; None for what is fixed or was not reached."""
        if self.form == "tensor":
            return relevance[0]
        rest = iter(relevance)
        explained = dict(zip(self.places, (next(rest) if has else None for has in reached), strict=True))
        found = [explained.get(i) for i in range(self.count)]
        if self.form == "tuple":
            return tuple(found)
        names = [name for name, item in self.kwargs.items() if isinstance(item, Tensor)]
        return dict(zip(names, found, strict=True))


def _traits(tensor: Tensor, fixed: bool) -> tuple[Any, ...]:
    own = (tensor.shape, tensor.dtype, tensor.device)
    if not fixed:
        return own
    tensor = tensor.detach().cpu()
    if tensor.layout != torch.strided:
        tensor = tensor.to_sparse_coo().coalesce()
        return (*own, *_traits(tensor.indices(), True), *_traits(tensor.values(), True))
    numbers = tensor.contiguous().flatten().view(torch.uint8).numpy()
    return (*own, hashlib.blake2b(numbers.tobytes(), digest_size=16).digest())


def graph_inputs(
    x: Any,
    model: nn.Module,
    ids: Sequence[str],
    fixed: Sequence[str],
    home: Tensor | None,
    find_home: Callable[[], Tensor | None],
) -> GraphInputs:
    """The input taken apart and checked.

    Args:
        x: a tensor, a tuple of positional or a dict of keyword inputs, without a batch axis.
        ids: names of integer inputs that choose rows of an embedding. fixed: of floats that are fixed, as integers are.
        home, find_home: see :func:`fastlrp.run.inputs.checked`, which also says what it raises.

    Raises:
        ValueError: for a name in ``ids`` that is no integer input, or one in ``fixed`` that is no input. TypeError: if
        nothing can have relevance.
    """
    whole = Inputs.of(x)
    items: list[tuple[int | str, Any]] = [*enumerate(whole.args), *whole.kwargs.items()]
    keys = [key for key, value in items if isinstance(value, Tensor)]
    parameters = list(inspect.signature(model.forward).parameters)
    named = [k if isinstance(k, str) else parameters[k] if k < len(parameters) else str(k) for k in keys]
    integers = {name for name, t in zip(named, whole.tensors, strict=True) if not t.is_floating_point()}
    kinds: tuple[tuple[str, Sequence[str], set[str]], ...] = (("ids", ids, integers), ("fixed", fixed, set(named)))
    for word, wanted, known in kinds:
        unknown = [name for name in wanted if name not in known]
        if unknown:
            kind = "input of integers" if word == "ids" else "input"
            raise ValueError(
                f"{word}= names {unknown[0]!r}, which is no {kind}: {', '.join(sorted(known)) or '(none)'}"
            )
    places = [i for i, name in enumerate(named) if (name not in integers or name in ids) and name not in fixed]
    if not places:
        raise TypeError(
            "all inputs are fixed, as integers and truth values are that say how the sample is built: name those that "
            "choose rows of an embedding, ids='x'"
        )
    explained = [whole.tensors[i] for i in places]
    names = [whole.names[i] for i in places]
    scalar = next((n for n, t in zip(names, explained, strict=True) if t.dim() == 0), None)
    if scalar is not None:
        raise ValueError(f"input {scalar!r} is a scalar: give it one axis, t[None]")
    batched = checked({name: t.unsqueeze(0) for name, t in zip(names, explained, strict=True)}, home, find_home)
    away = next((n for n, t in zip(whole.names, whole.tensors, strict=True) if t.device != explained[0].device), None)
    if away is not None:
        raise ValueError(f"input {away!r} is not on {explained[0].device}, as the input {names[0]!r} is: use x.to(…)")
    held = tuple(k for i, k in enumerate(keys) if i not in places)
    return GraphInputs(whole.args, whole.kwargs, batched.tensors, names, whole.form, held, places, len(whole.tensors))
