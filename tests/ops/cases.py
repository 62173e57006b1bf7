"""Hostile arguments for the operations, and the comparison with the definition."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastlrp.backends import dispatch
from fastlrp.backends.cpu import cpu_ops

DTYPES = (torch.float32, torch.float64)
# Relative, in the 2-norm; the first is the promise of the library. Worst measured: 3e-7 and 5e-16.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-13}


def backends(op: str) -> list[str]:
    """Those that have a function of their own for the operation."""
    return ["torch", "cpu"] if op in cpu_ops() else ["torch"]


def bound(op: str, backend: str, dtype: torch.dtype) -> Callable[..., Any]:
    selected = dispatch.select(op, backend, torch.device("cpu"), dtype)
    assert selected.backend == backend
    return selected.call


def reference(op: str) -> Callable[..., Any]:
    return getattr(importlib.import_module(f"fastlrp.reference.{dispatch.STEMS[op]}"), op)


def assert_close(got: Any, expected: Any, context: Any = "") -> None:
    """Tensors, or tuples of tensors and None, equal up to rounding."""
    if isinstance(expected, tuple):
        assert len(got) == len(expected)
        for g, e in zip(got, expected, strict=True):
            assert_close(g, e, context)
        return
    if expected is None:
        assert got is None, f"{context}: expected None"
        return
    assert got.shape == expected.shape, f"{context}: shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
    assert got.dtype == expected.dtype, f"{context}: {got.dtype}, expected {expected.dtype}"
    if expected.numel() == 0:
        return
    assert expected.isfinite().all(), f"{context}: the definition is not finite"
    error = (got.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-30)
    assert error <= TOLERANCE[expected.dtype], f"{context}: relative error {error:.3g}"


def widened(value: Any) -> Any:
    """Floating-point tensors, in lists and tuples too, in float64."""
    if isinstance(value, (list, tuple)):
        return type(value)(widened(v) for v in value)
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def assert_as_near_as_plain(op: str, plain: ModuleType, given: tuple[Any, ...], got: Tensor, times: float = 2) -> None:
    """Near the definition: to the tolerance, or in 16 bits at most ``times`` the error of PyTorch's own operations."""
    exact = reference(op)(*widened(given))
    assert got.shape == exact.shape
    assert got.dtype == given[0].dtype
    if exact.numel() == 0:
        return
    error = (got.double() - exact).norm() / exact.norm().clamp(min=1e-30)
    if got.dtype in TOLERANCE:
        assert error <= TOLERANCE[got.dtype]
    else:
        composed = getattr(plain, op)(*given).double()
        assert error <= times * (composed - exact).norm() / exact.norm().clamp(min=1e-30)


def with_gaps(t: Tensor) -> Tensor:
    """The same values, every other element of NaN-filled memory in each axis."""
    gaps = torch.full([2 * n for n in t.shape], torch.nan if t.is_floating_point() else -1, dtype=t.dtype)
    view = gaps[tuple(slice(None, None, 2) for _ in t.shape)]
    view.copy_(t)
    return view


def reversed_memory(t: Tensor) -> Tensor:
    """The same values with the first axis fastest in memory."""
    axes = tuple(reversed(range(t.dim())))
    return t.permute(axes).contiguous().permute(axes)


def channels_last(axis: int) -> Callable[[Tensor], Tensor]:
    """The same values with an axis innermost in memory."""

    def change(t: Tensor) -> Tensor:
        return t.movedim(axis, -1).contiguous().movedim(-1, axis)

    return change


def same(t: Tensor) -> Tensor:
    return t


def relayouts(arguments: tuple[Any, ...], first: Callable[[Tensor], Tensor], rest: Callable[[Tensor], Tensor]) -> Any:
    """Arguments with the memory of the first and of all other tensors changed."""
    change = [first, *[rest] * (len(arguments) - 1)]
    return tuple(f(a) if isinstance(a, Tensor) else a for f, a in zip(change, arguments, strict=True))


def layouts(arguments: tuple[Any, ...], channel_axis: int = 1) -> Iterator[tuple[Any, ...]]:
    """The same arguments in other memory; the first tensor has a target axis, the others have none."""
    yield arguments
    last = (channels_last(channel_axis + 1), channels_last(channel_axis))
    for first, rest in ((with_gaps, with_gaps), (reversed_memory, same), (last[0], same), (same, last[1]), last):
        yield relayouts(arguments, first, rest)


def few_layouts(arguments: tuple[Any, ...], channel_axis: int = 1) -> list[tuple[Any, ...]]:
    """With gaps, in reverse, channels last: for kernels that an interpreter runs, once plain memory was tried."""
    _, gaps, reverse, *_, last = layouts(arguments, channel_axis)
    return [gaps, reverse, last]


def terms(size: tuple[int, ...], dtype: torch.dtype) -> Iterator[tuple[Tensor | None, Tensor | None]]:
    """Coefficients u and v: one of them or both, with dead neurons."""
    u, v = (torch.randn(size, dtype=dtype) * (torch.rand(size) < 0.7) for _ in range(2))
    yield from ((u, None), (None, v), (u, v))


def in_dtypes(cases: Iterable[Any], dtypes: Sequence[torch.dtype] = DTYPES, every: int = 4) -> list[tuple[Any, Any]]:
    """Pairs of a case and a dtype: every case in the first dtype; a fourth in each other one, another for each."""
    places = range(len(dtypes))
    return [(c, dtypes[d]) for d in places for n, c in enumerate(cases) if d == 0 or n % every == d % every]


def signs() -> Iterator[tuple[bool, bool]]:
    yield from product((False, True), repeat=2)


def mixed(*size: int, dtype: torch.dtype) -> Tensor:
    """Both signs and exact zeros."""
    return torch.randn(size, dtype=dtype) * (torch.rand(size) < 0.8)
