"""Complex activations as pairs of real ones: ``(…, 2)``, real and imaginary parts, which carry relevance.

A complex tensor of a model is a :class:`Pair` while the model is translated, and no value of the graph is complex.
Fourier transforms, products with complex constants and sums are linear maps from pairs to pairs, in which relevance is
shared in proportion (:mod:`fastlrp.kinds.linear_map`); a product of two complex activations gives each half; an
absolute value is the norm of a pair; the rest moves entries. Everything else has no rule, as for real numbers.

Source: the discrete Fourier transform as a layer of real and imaginary parts, Vielhaben et al. 2024 (DFT-LRP).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from fastlrp.capture.calls import part
from fastlrp.capture.graph import Constant, Value, leaves
from fastlrp.kinds.registry import KIND_OF

aten = torch.ops.aten

Shape = tuple[int | str | None, ...]

_SAME = {"clone", "contiguous", "detach", "alias", "lift_fresh", "lift_fresh_copy", "resolve_conj", "resolve_neg",
         "view_as_complex", "detach_copy", "positive"}  # fmt: skip
_PRODUCTS = ("matmul", "mm", "bmm", "mv", "dot", "einsum", "linear", "outer", "tensordot")
_RESHAPES = ("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "_unsafe_view", "view_as", "reshape_as")
_ONE_AXIS = ("select", "slice", "narrow", "cumsum")
_SEVERAL = ("unbind", "chunk", "split", "split_with_sizes", "tensor_split", "unsafe_chunk", "unsafe_split")


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

    def result(self) -> Any:
        """A :class:`Pair`, a real value, or a tuple of them for several results."""
        if self.name in _SAME:
            first = self.args[0]
            return first if isinstance(first, Pair) else Pair(first)
        if self.name in _SEVERAL:
            return tuple(self.on_pairs(self._kind(), part(self.call, i), i) for i in range(len(self.shapes)))
        form = _FORMS.get(self.name)
        found = None if form is None else form(self)
        return self.on_pairs(self._kind()) if found is None else found

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

    def _kind(self) -> str:
        if self.name.endswith("_scatter"):
            return "write"
        kind = KIND_OF.get(self.name, "unknown")
        return kind if kind in ("move", "write") or self._transforms() else "unknown"

    def _transforms(self) -> bool:
        """Whether it is a Fourier transform, which is linear."""
        return self.name.startswith("fft_") or self.name in ("stft", "istft")


def derived(constant: Constant, change: Callable[[Tensor], Tensor]) -> Constant:
    """A constant computed from another whenever it is asked for."""
    return Constant(constant.name, lambda: change(constant.tensor()), constant.fault)


def _parts(t: Tensor) -> Tensor:
    return torch.view_as_real(t.resolve_conj()) if t.is_complex() else torch.stack([t, torch.zeros_like(t)], -1)


def complex_of(parts: Tensor) -> Tensor:
    """The complex tensor of real and imaginary parts."""
    return torch.view_as_complex(parts.contiguous())


def with_zero(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A real tensor as the real part of a complex one."""
    x = x.to(dtype)
    return torch.stack([x, torch.zeros_like(x)], -1)


# What operations become. None: the operation itself on pairs.


def _part(index: int) -> Callable[[Translation], Any]:
    def form(t: Translation) -> Any:
        z = t.args[0]
        if not isinstance(z, Pair):
            return None
        return t.make("select", aten.select.int, (z.parts, len(z.shape), index), z.shape)

    return form


def _view_as_real(t: Translation) -> Any:
    return t.args[0].parts if isinstance(t.args[0], Pair) else None


def _joined_parts(t: Translation) -> Any:
    """``torch.complex``."""
    return _stacked(t, *t.args[:2])


def _stacked(t: Translation, real: Any, imaginary: Any) -> Any:
    operands = [real, imaginary]
    if any(tuple(x.shape if isinstance(x, Value) else x.tensor().shape) != t.shape for x in operands):
        return None
    return t.pair("stack", aten.stack.default, (operands, len(t.shape)))


def _polar(t: Translation) -> Any:
    """Length times cosine and sine."""
    length, angle = t.args[:2]
    if not (isinstance(length, Value) and isinstance(angle, Value) and length.shape == angle.shape):
        return _polar_of_a_constant(t, length, angle)
    found = []
    for name, call in (("cos", aten.cos.default), ("sin", aten.sin.default)):
        turned = t.make(name, call, (angle,), t.shape)
        found.append(t.make("mul", aten.mul.Tensor, (length, turned), t.shape))
    return _stacked(t, *found)


def _polar_of_a_constant(t: Translation, length: Any, angle: Any) -> Any:
    if isinstance(angle, Constant):
        turned = derived(angle, lambda a: torch.stack([a.cos(), a.sin()], -1))
        return t.pair("mul", aten.mul.Tensor, (t.behind(length), turned))
    return None


def _absolute(t: Translation) -> Any:
    z = t.args[0]
    return t.make("linalg_vector_norm", aten.linalg_vector_norm.default, (z.parts, 2, [len(z.shape)]), t.shape)


def _conjugate(t: Translation) -> Any:
    signs = Constant("conjugate", torch.tensor([1.0, -1.0], dtype=t.dtype, device=t.device))
    return t.pair("mul", aten.mul.Tensor, (t.args[0].parts, signs))


def _converted(t: Translation) -> Any:
    """To another dtype: of real ones, of pairs, and to real numbers, which takes the real part."""
    z = t.args[0]
    if not isinstance(z, Pair):
        return Pair(t.both(z))
    if not t.gives[0]:
        real = t.make("select", aten.select.int, (z.parts, len(z.shape), 0), z.shape, dtype=z.parts.dtype)
        return real if t.dtype == z.parts.dtype else t.make("to", aten.to.dtype, (real, t.dtype), z.shape, "move")
    if t.dtype == z.parts.dtype:
        return z
    return Pair(t.make("to", aten.to.dtype, (z.parts, t.dtype), z.parts.shape, "move"))


def _copied(t: Translation) -> Any:
    source = t.args[1]
    if not isinstance(source, (Pair, Value)) or source.shape != t.shape:
        return None
    return source if isinstance(source, Pair) else Pair(t.both(source))


def _summed(t: Translation) -> Any:
    """Sums and differences, of parts with parts."""
    if isinstance(t.kwargs.get("alpha"), complex):
        return None
    return t.pair(t.name, getattr(aten, t.name).Tensor, tuple(map(t.both, t.args[:2])), t.kwargs)


def _multiplied(t: Translation) -> Any:
    first, second = t.args[:2]
    if is_complex(first) and is_complex(second):
        both = isinstance(first, Pair) and isinstance(second, Pair)
        return t.on_pairs("homogeneous" if both else "linear_map")
    z, real = (first, second) if is_complex(first) else (second, first)
    if not isinstance(z, Pair) and not isinstance(real, Value):
        return None
    return t.pair("mul", aten.mul.Tensor, (t.parts(z), t.behind(real)))


def _divided(t: Translation) -> Any:
    z, divisor = t.args[:2]
    if isinstance(z, Pair) and not is_complex(divisor):
        return t.pair("div", aten.div.Tensor, (z.parts, t.behind(divisor)))
    return t.on_pairs("linear_map") if isinstance(z, Pair) and not isinstance(divisor, Pair) else None


def _product(t: Translation) -> Any:
    """Linear in one activation; of several each takes an equal part. A linear layer's bias is added afterwards."""
    factors = [leaf for leaf in leaves((t.args, t.kwargs)) if isinstance(leaf, (Pair, Value))]
    kind = "linear_map" if len(factors) == 1 else "homogeneous"
    bias = t.a.get("bias") if t.name == "linear" else None
    if bias is None:
        return t.on_pairs(kind)
    t.args, t.kwargs = (t.a["input"], t.a["weight"]), {}
    product = t.on_pairs(kind)
    return t.pair("add", aten.add.Tensor, (product.parts, t.both(bias)))


def _negative(t: Translation) -> Any:
    return t.pair("neg", aten.neg.default, (t.args[0].parts,))


def _over_axes(t: Translation) -> Any:
    """``sum`` and ``mean``."""
    z, dims = t.args[0], t.a.get("dim")
    if not isinstance(z, Pair) or not t.gives[0]:
        return None
    rank = len(z.shape)
    axes = [d % rank for d in ([dims] if isinstance(dims, int) else dims or range(rank))]
    call = aten.sum.dim_IntList if t.name == "sum" else aten.mean.dim
    return t.pair(t.name, call, (z.parts, axes, bool(t.a.get("keepdim"))))


def _reshaped(t: Translation) -> Any:
    z = t.args[0]
    sizes = [-1 if n is None else n for n in t.shape]
    if not all(isinstance(n, int) for n in sizes):
        return None
    if isinstance(t.a.get("dtype"), torch.dtype):
        return _seen_as_another_dtype(t, sizes)
    if not isinstance(z, Pair):
        return None
    return t.pair("reshape", aten.reshape.default, (z.parts, [*sizes, 2]))


def _seen_as_another_dtype(t: Translation, sizes: list[Any]) -> Any:
    """``view(dtype)``: real and imaginary parts side by side along the last axis."""
    z = t.args[0]
    if isinstance(z, Pair) and z.parts.dtype == t.dtype and not t.gives[0]:
        return t.make("reshape", aten.reshape.default, (z.parts, sizes), t.shape)
    if isinstance(z, Value) and z.dtype == t.dtype:
        return t.pair("reshape", aten.reshape.default, (z, [*sizes, 2]))
    return t.on_pairs("unknown")


def _permuted(t: Translation) -> Any:
    z = t.args[0]
    rank = len(t.shape)
    if t.name == "permute":
        order = [d % rank for d in t.a["dims"]]
    else:
        first: Any = t.a.get("dim0", t.a.get("axis0", -2))
        second: Any = t.a.get("dim1", t.a.get("axis1", -1))
        order = list(range(rank))
        order[first], order[second] = order[second], order[first]
    return t.pair("permute", aten.permute.default, (z.parts, [*order, rank]))


def _along_one(t: Translation) -> Any:
    z = t.args[0]
    named = {"self": z.parts, **{k: v for k, v in t.a.items() if k != "self"}}
    named["dim"] = named["dim"] % len(z.shape)
    return t.pair(t.name, t.call, tuple(v for k, v in named.items() if k != "dtype"))


def _listed(t: Translation) -> Any:
    """``cat`` and ``stack``."""
    parts, dim = t.args[0], t.a.get("dim", 0)
    return t.pair(t.name, t.call, ([t.both(p) for p in parts], dim % len(t.shape)))


_FORMS: dict[str, Callable[[Translation], Any]] = {
    "view_as_real": _view_as_real, "real": _part(0), "imag": _part(1), "complex": _joined_parts, "polar": _polar,
    "abs": _absolute, "conj": _conjugate, "_conj": _conjugate, "conj_physical": _conjugate,
    "to": _converted, "_to_copy": _converted, "type_as": _converted, "copy": _copied, "add": _summed, "sub": _summed,
    "mul": _multiplied, "div": _divided, "neg": _negative, "sum": _over_axes, "mean": _over_axes,
    "cat": _listed, "stack": _listed, "permute": _permuted, "transpose": _permuted, "swapaxes": _permuted,
    "mT": _permuted, "t": _permuted, **dict.fromkeys(_PRODUCTS, _product), **dict.fromkeys(_RESHAPES, _reshaped),
    **dict.fromkeys(_ONE_AXIS, _along_one),
}  # fmt: skip
