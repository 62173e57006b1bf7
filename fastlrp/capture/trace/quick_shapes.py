"""Shapes of frequent operations, from their definition, while torch.export traces a model.

torch.export finds out shapes by taking operations apart into others until each has a rule for shapes: a layer norm
into a dozen, each of which compares sizes with a batch of any size in them. That is up to half of the time of a
capture. Here layers, norms and activations say what comes out, in the same layout. Where an argument is anything but
usual they leave it to PyTorch, which then raises the error too, if there is one.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastlrp.capture.trace.sequence_shapes import GATES, results

try:  # Private parts, there from PyTorch 2.11 to 2.14. Where a later one lacks them it finds out shapes its own way.
    from torch._dispatch.python import no_python_dispatcher
    from torch._subclasses.fake_impls import get_fast_op_impls
    from torch._subclasses.fake_tensor import FakeTensor, in_kernel_invocation_manager

    _AVAILABLE = all(
        hasattr(torch.ops.aten.linear.default, part) for part in ("py_kernels", "_op_dk", "_dispatch_cache")
    )
except ImportError:
    _AVAILABLE = False

Kernel = Callable[..., Any]
aten = torch.ops.aten
_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
_LIKE_INPUT = (
    "relu", "gelu", "silu", "tanh", "sigmoid", "hardswish", "hardsigmoid", "elu", "leaky_relu", "neg", "exp", "log",
    "sqrt", "rsqrt", "sin", "cos", "erf",
)  # fmt: skip
"""Entry by entry: what comes out has the shape, the dtype and the layout of a floating-point input."""
_IN_PLACE = ("relu_", "silu_", "hardswish_", "hardsigmoid_", "tanh_", "sigmoid_", "elu_", "leaky_relu_")


@contextlib.contextmanager
def shapes_by_definition() -> Iterator[None]:
    """In this block the calling thread's traces take shapes from here."""
    with contextlib.ExitStack() as stack:
        if not _AVAILABLE:
            yield
            return
        for op, kernel in _composite().items():
            stack.enter_context(_replaced(op, kernel))
        stack.enter_context(_quick())
        yield


# Operations that PyTorch composes of others, which no backend has a kernel of its own for


def _composite() -> dict[Any, Kernel]:
    """Functions that give the result, or None if the arguments are not those that they know."""
    sequences = {getattr(aten, name).input: partial(results, gates) for name, gates in GATES.items()}
    layers: dict[Any, Kernel] = {
        aten.linear.default: _linear, aten.matmul.default: _matmul, aten.layer_norm.default: _layer_norm,
        aten.batch_norm.default: _batch_norm,
    }  # fmt: skip
    return layers | sequences


@contextlib.contextmanager
def _replaced(op: Any, kernel: Kernel) -> Iterator[None]:
    tracing, before = threading.get_ident(), dict(op.py_kernels)

    def by_definition(other: Kernel, *args: Any, **kwargs: Any) -> Any:
        usual = threading.get_ident() == tracing and type(args[0]) is FakeTensor
        found = kernel(*args, **kwargs) if usual and not _autocast(args[0].device.type) else None
        return other(*args, **kwargs) if found is None else found

    kernels = before or {_COMPOSITE: partial(op._op_dk, _COMPOSITE)}
    op.py_kernels.update({key: partial(by_definition, other) for key, other in kernels.items()})
    op._dispatch_cache.clear()
    try:
        yield
    finally:
        op.py_kernels.clear()
        op.py_kernels.update(before)
        op._dispatch_cache.clear()


def _autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def _plain(x: Tensor, *others: Tensor | None) -> bool:
    """Whether these are tensors of one floating-point dtype and of one device, and none a number known to the trace."""
    return (
        x.is_floating_point()
        and x.constant is None  # type: ignore[attr-defined]
        and all(t is None or (t.dtype == x.dtype and t.device == x.device) for t in others)
    )


def _is(size: Any, other: Any) -> bool:
    """Whether two sizes are the same number or the same symbol; asks nothing that the trace would have to remember."""
    if isinstance(size, torch.SymInt) or isinstance(other, torch.SymInt):
        return isinstance(size, torch.SymInt) and isinstance(other, torch.SymInt) and size.node.expr == other.node.expr
    return bool(size == other)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    """``(*, I)`` and ``(O, I)``: ``(*, O)``."""
    fits = x.dim() >= 2 and weight.dim() == 2 and _plain(x, weight, bias) and _is(x.shape[-1], weight.shape[1])
    if not fits or not (bias is None or (bias.dim() == 1 and _is(bias.shape[0], weight.shape[0]))):
        return None
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _matmul(a: Tensor, b: Tensor) -> Tensor | None:
    """``(*, M, N)`` and ``(*, N, P)``, as many matrices of both: ``(*, M, P)``."""
    if type(b) is not FakeTensor or a.dim() != b.dim() or a.dim() < 3 or not _plain(a, b):
        return None
    if not _is(a.shape[-1], b.shape[-2]) or not all(map(_is, a.shape[:-2], b.shape[:-2])):
        return None
    return a.new_empty((*a.shape[:-1], b.shape[-1]))


def _layer_norm(
    x: Tensor, shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, *rest: Any, **options: Any
) -> Tensor | None:
    """Like its input, but in order in memory."""
    fits = 0 < len(shape) < x.dim() and all(map(_is, x.shape[-len(shape) :], shape)) and _plain(x, weight, bias)
    fits = fits and all(t is None or (t.dim() == len(shape) and all(map(_is, t.shape, shape))) for t in (weight, bias))
    return x.new_empty(x.shape) if fits else None


def _batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None, var: Tensor | None, training: bool,
    *rest: Any, **options: Any,
) -> Tensor | None:  # fmt: skip
    """Like its input, in evaluation mode."""
    given = (weight, bias, mean, var)
    if training or mean is None or var is None or x.dim() < 2 or not _plain(x, *given):
        return None
    fits = all(t is None or (t.dim() == 1 and _is(t.shape[0], x.shape[1])) for t in given)
    return torch.empty_like(x, memory_format=_layout(x)) if fits else None


def _layout(x: Tensor) -> torch.memory_format:
    """What comes out entry by entry lies as its input does, but in order where axes of size 1 leave that open."""
    return torch.contiguous_format if x.is_contiguous() else torch.preserve_format


# Operations that stand for themselves


@contextlib.contextmanager
def _quick() -> Iterator[None]:
    """Further entries of the table that PyTorch's fake tensors look into first where a size is a symbol."""
    table: dict[Any, Kernel] = get_fast_op_impls()
    added: dict[Any, Kernel] = {getattr(aten, name).default: _like_input for name in _LIKE_INPUT}
    added |= {getattr(aten, name).default: _in_place for name in _IN_PLACE}
    added = {op: partial(kernel, op) for op, kernel in added.items() if op not in table}
    table.update(added)
    try:
        yield
    finally:
        for op in added:
            table.pop(op, None)


def _like_input(op: Any, mode: Any, x: Any, *args: Any, **kwargs: Any) -> Tensor:
    if not x.is_floating_point():  # The square root of an integer has another dtype.
        return _taken_apart(op, mode, x, *args, **kwargs)
    with no_python_dispatcher(), in_kernel_invocation_manager(mode):
        made = aten.empty_like.default(x, memory_format=_layout(x))
    return FakeTensor(mode, made, x.device)


def _in_place(op: Any, mode: Any, x: Any, *args: Any, **kwargs: Any) -> Tensor:
    found: Tensor = x if x.is_floating_point() else _taken_apart(op, mode, x, *args, **kwargs)
    return found


def _taken_apart(op: Any, mode: Any, *args: Any, **kwargs: Any) -> Any:
    from torch._decomp import decomposition_table

    with mode:
        return decomposition_table[op](*args, **kwargs)
