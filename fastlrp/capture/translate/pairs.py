"""Complex activations as pairs of real ones, and how an operation on them becomes a node of the graph.

See :mod:`fastlrp.capture.translate.complex_numbers`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from fastlrp.capture.graph import Constant, Value, derived
from fastlrp.kinds.registry import KIND_OF

aten = torch.ops.aten

Shape = tuple[int | str | None, ...]

COMPLEX_OUTPUT = "complex_output"
"""The operation's name of a complex result of the model."""


@dataclass(frozen=True, eq=False)
class Pair:
    """A complex activation, by its real and imaginary parts along a last axis of two."""

    parts: Value

    @property
    def shape(self) -> Shape:
        return self.parts.shape[:-1]


class OnPairs:
    """An operation on complex tensors as one on pairs.

    Args:
        call: of complex tensors. complex: for each leaf of the arguments, whether it is a pair. gives_pair: whether
            its result is complex.
    """

    def __init__(self, call: Callable[..., Any], complex: list[bool], gives_pair: bool) -> None:
        self.call, self.complex, self.gives_pair = call, complex, gives_pair

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        found, spec = tree_flatten((args, kwargs))
        # The derivative of torch.stft counts entries that share memory, as those of an expanded tensor do, as one.
        found = [
            complex_of(leaf) if is_pair else leaf.contiguous() if isinstance(leaf, Tensor) else leaf
            for leaf, is_pair in zip(found, self.complex, strict=True)
        ]
        args, kwargs = tree_unflatten(found, spec)
        result: Tensor = self.call(*args, **kwargs)
        return torch.view_as_real(result.resolve_conj()) if self.gives_pair else result


class Makes(Protocol):
    """Appends a node to the graph: its name, function, arguments, keywords, shape, dtype and kind."""

    def __call__(
        self, name: str, call: Any, args: tuple[Any, ...], shape: Any, kind: str | None = None,
        kwargs: dict[str, Any] | None = None, dtype: torch.dtype | None = None,
    ) -> Value: ...  # fmt: skip


def is_complex(leaf: Any) -> bool:
    """Whether an argument is complex: an activation, a constant or a number."""
    if isinstance(leaf, Constant):
        return bool(leaf.tensor().is_complex())
    return isinstance(leaf, (Pair, complex))


@dataclass
class Translation:
    """One operation that reads or gives complex numbers.

    Attributes:
        name, call, args, kwargs: of the operation. a: its arguments by name. shapes: of its results, as the model has
            them. gives: for each result whether it is complex. make: appends a node.
        dtype, device: of real and imaginary parts.
    """

    name: str
    call: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    a: dict[str, Any]
    shapes: list[Shape]
    gives: list[bool]
    dtype: torch.dtype
    device: torch.device
    make: Makes

    @property
    def shape(self) -> Shape:
        return self.shapes[0]

    def on_pairs(self, kind: str, call: Any = None, position: int = 0) -> Any:
        """The operation itself, between pairs."""
        flat, _ = tree_flatten((self.args, self.kwargs))
        wrapped = OnPairs(call or self.call, [is_complex(leaf) for leaf in flat], self.gives[position])
        args, kwargs = tree_map(lambda leaf: self.parts(leaf) if is_complex(leaf) else leaf, (self.args, self.kwargs))
        name = self.name if self._transforms() else f"complex_{self.name.removeprefix('_')}"
        pair, shape = self.gives[position], self.shapes[position]
        made = self.make(name, wrapped, args, (*shape, 2) if pair else shape, kind, kwargs)
        return Pair(made) if pair else made

    def pair(self, name: str, call: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Pair:
        """An operation on the parts, which treats real and imaginary ones alike."""
        return Pair(self.make(name, call, args, (*self.shape, 2), None, kwargs))

    def both(self, operand: Any) -> Any:
        """An operand's parts, of a real one with an imaginary part of zero."""
        if isinstance(operand, Value):
            return self.make("complex", with_zero, (operand, self.dtype), (*operand.shape, 2), "move")
        return self.parts(operand)

    def parts(self, operand: Any) -> Any:
        """Real and imaginary parts of a complex activation, a constant or a number, which takes this dtype."""
        if isinstance(operand, Pair):
            return operand.parts
        if isinstance(operand, Constant):
            return derived(operand, _parts)
        number = complex(operand)
        dtype = self.dtype if self.dtype.is_floating_point else torch.float64  # A comparison gives no floats.
        return Constant("number", torch.tensor([number.real, number.imag], dtype=dtype, device=self.device))

    def behind(self, operand: Any) -> Any:
        """A real operand with an axis of one for the parts."""
        if isinstance(operand, Value):
            rank = len(operand.shape)
            return self.make("unsqueeze", aten.unsqueeze.default, (operand, rank), (*operand.shape, 1),
                             dtype=operand.dtype)  # fmt: skip
        return derived(operand, lambda t: t.unsqueeze(-1)) if isinstance(operand, Constant) else operand

    @property
    def kind(self) -> str:
        """Of the operation itself between pairs."""
        if self.name.endswith("_scatter"):
            return "write"
        kind = KIND_OF.get(self.name, "unknown")
        return kind if kind in ("move", "write") or self._transforms() else "unknown"

    def _transforms(self) -> bool:
        """Whether it is a Fourier transform, which is linear."""
        return self.name.startswith("fft_") or self.name in ("stft", "istft")


def _parts(t: Tensor) -> Tensor:
    return torch.view_as_real(t.resolve_conj()) if t.is_complex() else torch.stack([t, torch.zeros_like(t)], -1)


def complex_of(parts: Tensor) -> Tensor:
    """The complex tensor of real and imaginary parts."""
    return torch.view_as_complex(parts.contiguous())


def with_zero(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A real tensor as the real part of a complex one."""
    x = x.to(dtype)
    return torch.stack([x, torch.zeros_like(x)], -1)
