"""Complex activations as pairs of real ones: ``(…, 2)``, real and imaginary parts, which carry relevance.

A complex tensor of a model is a pair (:mod:`fastlrp.capture.translate.pairs`) while the model is translated, and no
value of the graph is complex. Fourier transforms, products with complex constants and sums are linear maps from pairs
to pairs, in which relevance is shared in proportion (:mod:`fastlrp.kinds.linear_map`); a product of two complex
activations gives each half; an absolute value is the norm of a pair; the rest moves entries. Everything else has no
rule, as for real numbers.

Source: the discrete Fourier transform as a layer of real and imaginary parts, Vielhaben et al. 2024 (DFT-LRP).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastlrp.capture.graph import Constant, Value, derived, leaves
from fastlrp.capture.translate.calls import part
from fastlrp.capture.translate.pairs import Pair, Translation, is_complex

aten = torch.ops.aten

_SAME = {"clone", "contiguous", "detach", "alias", "lift_fresh", "lift_fresh_copy", "resolve_conj", "resolve_neg",
         "view_as_complex", "detach_copy", "positive"}  # fmt: skip
_PRODUCTS = ("matmul", "mm", "bmm", "mv", "dot", "einsum", "linear", "outer", "tensordot")
_RESHAPES = ("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "_unsafe_view", "view_as", "reshape_as")
_ONE_AXIS = ("select", "slice", "narrow", "cumsum")
_SEVERAL = ("unbind", "chunk", "split", "split_with_sizes", "tensor_split", "unsafe_chunk", "unsafe_split")


def translated(t: Translation) -> Any:
    """A :class:`~fastlrp.capture.translate.pairs.Pair`, a real value, or a tuple of them for several results."""
    if t.name in _SAME:
        first = t.args[0]
        return first if isinstance(first, Pair) else Pair(first)
    if t.name in _SEVERAL:
        return tuple(t.on_pairs(t.kind, part(t.call, i), i) for i in range(len(t.shapes)))
    form = _FORMS.get(t.name)
    found = None if form is None else form(t)
    return t.on_pairs(t.kind) if found is None else found


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
