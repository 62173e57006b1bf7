"""Arguments that are wrong in every way that a caller can think of, for functions of the compiled extension.

``changes(arguments)`` gives the right arguments with one thing changed at a time: each tensor of another dtype, device,
layout, rank or size, without memory, far too large, of NaN or of numbers that point outside; each number negative, 0 or
beyond 32 and 64 bits; each list too short, too long or of such numbers. A function must raise a Python exception that
names the operation, or compute; never end the process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

REFUSALS = (ValueError, TypeError, RuntimeError, IndexError, MemoryError)
NUMBERS = (-1, 0, 3, 2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1, -(2**63))


def tensors(x: Tensor) -> Iterator[tuple[str, Any]]:
    """A tensor, wrong."""
    yield "None", None
    yield "a list", x.flatten()[:3].tolist()
    for dtype in (torch.float16, torch.float32, torch.float64, torch.int32, torch.int64, torch.bool, torch.complex64):
        if dtype != x.dtype:
            yield str(dtype), x.to(dtype)
    yield "meta", x.to("meta")
    if x.dim() > 0:
        yield "sparse", x.to_sparse()
        yield "nothing", x[:0]
        yield "one less", x[:-1]
        yield "one of them", x[:1]
        yield "flat", x.flatten()
        yield "the other way round", x.permute(*range(x.dim() - 1, -1, -1))
        yield "with gaps", x.repeat_interleave(2, -1)[..., ::2]
        yield "without its last axis", x[..., 0]
        yield "more than all memory", x[:1].expand(2**40, *x.shape[1:])
        yield "no elements, more than all memory", x[..., :0].unsqueeze(0).expand(2**40, *x[..., :0].shape)
    yield "a number", x.flatten()[:1].sum()
    yield "one axis more", x.unsqueeze(0)
    yield "more than all memory, behind", x.unsqueeze(-1).expand(*x.shape, 2**40)
    freed = x.clone()
    freed.untyped_storage().resize_(0)
    yield "freed", freed
    for value in (float("nan"), float("inf")) if x.is_floating_point() else (-1, 0, 2**31 - 1, -(2**31)):
        yield f"all {value}", torch.full_like(x, value)
    if x.dtype == torch.int64:
        yield "far away", torch.full_like(x, 2**62)
        yield "backwards", x.flip(0) if x.dim() else x
        if x.dim() == 1 and len(x) > 2:
            yield "one beyond", torch.cat([x[:1], x[1:2] + 2**40, x[2:]])
            yield "one before", torch.cat([x[:1], x[1:2] - 2**40, x[2:]])
    if x.dtype == torch.int32 and x.dim() == 1 and len(x) > 1:
        for value in (10**6, 2**31 - 1, -1):
            yield f"last {value}", torch.cat([x[:-1], torch.tensor([value], dtype=torch.int32)])
        yield "twice the same", torch.cat([x[1:2], x[1:]])


def variants(value: Any) -> Iterator[tuple[str, Any]]:
    """Anything, wrong."""
    if isinstance(value, Tensor):
        yield from tensors(value)
    elif isinstance(value, bool) or value is None:
        yield "text", "text"
        yield "a tensor", torch.ones(2, 2)
    elif isinstance(value, (int, float)):
        yield from ((str(number), number) for number in NUMBERS)
        yield "nan", float("nan")
        yield "text", "text"
    elif isinstance(value, str):
        yield "unknown", "unknown"
        yield "number", 3
    else:
        kind = type(value)
        yield "too short", kind(value[:-1])
        yield "too long", kind([*value, *value[:1]])
        for place, part in enumerate(value):
            for name, wrong in variants(part):
                yield f"{place}: {name}", kind([*value[:place], wrong, *value[place + 1 :]])
        if value and all(isinstance(part, int) for part in value):
            yield from ((f"all {number}", [number] * len(value)) for number in NUMBERS)


def changes(arguments: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The arguments with one of them wrong, and what that is."""
    for key, value in arguments.items():
        for name, wrong in variants(value):
            yield f"{key}: {name}", {**arguments, key: wrong}


def survived(function: Callable[..., Any], op: str, arguments: dict[str, Any]) -> int:
    """How many of the changed calls the function refused; each by an exception that names the operation."""
    function(**arguments)
    refused, nameless = 0, []
    for name, changed in changes(arguments):
        try:
            function(**changed)
        except REFUSALS as error:
            refused += 1
            if not _names(error, op):
                nameless.append(f"{name}: {error!r}")
    assert not nameless, nameless[:5]
    return refused


def _names(error: Exception, op: str) -> bool:
    """PyTorch speaks for itself where memory ends, pybind11 where a type is another, and kernels of an index."""
    known = (op, "incompatible function arguments", "allocate", "overflow", "index must", "index out of")
    return isinstance(error, MemoryError) or any(word in str(error) for word in known)
