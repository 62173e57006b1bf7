"""The way down through a layer: its transpose, by whichever product the layer's choice and the backend allow.

In this order: by Winograd's filtering where the rules allow it; of bfloat16, or filtered after a look; by weights that
are laid out beforehand, or filtered after a look; by the operation of the backend.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from fastlrp.aten import _product
from fastlrp.aten.conv import few_channels
from fastlrp.plan.builder import Builder
from fastlrp.plan.layer import AffineLayer
from fastlrp.plan.products import depth, few, layer_calls, looked_narrow, packed, point, reduced
from fastlrp.plan.products.channels_last import channels_last
from fastlrp.plan.products.fused import for_kernel, is_fused


def transpose(
    b: Builder, layer: AffineLayer, weight: Tensor, weight_positive: Tensor | None, signed: bool, multiply: bool,
    bounded: bool = False,
) -> Callable[..., Tensor]:  # fmt: skip
    """``(register, u, v, input) -> c`` by the selected backend; a False input is one known to be >= 0.

    Where :meth:`AffineLayer.factor_of` names a slot it is also given what that holds, last.

    Args:
        weight, weight_positive: of u and of v. signed: whether the second term goes by the input's sign. multiply:
            whether the result is multiplied with the input. bounded: see
            :class:`fastlrp.plan.coefficients.Coefficients`.
    """
    choice = layer.choice
    filtered = layer.goes_filtered(bounded, signed) and not multiply
    if choice.is_reduced and not filtered:
        return _of_bfloat16(b, layer, weight, weight_positive, signed, multiply)
    fused = is_fused(b, layer)
    plain = _by_backend(b, layer, weight, weight_positive, signed, multiply)
    if filtered:
        b.note_filtered("down")
        first, second = (None if w is None else layer.layouts.filtered(w, down=True) for w in (weight, weight_positive))
        return packed.transposed(first, second, None, plain)
    if choice.is_depth and weight.shape == layer.weight.shape and not fused and not multiply:
        return depth.transposed(weight, weight_positive, list(layer.x.sizes[1:]), layer.geometry, signed, plain)
    packs = choice.packs and not fused and not multiply
    if packs and choice.is_narrow_few and few.pays(layer.geometry, weight):
        b.note("bf16")
    if packs and choice.looks_down:
        b.note_filtered("down", looked=True)
    return _by_packed(layer, weight, weight_positive, signed, plain) if packs else plain


def reduced_transpose_of_both(
    b: Builder, layer: AffineLayer, weights: Sequence[Tensor], positives: Sequence[Tensor], signed: bool
) -> Callable[..., Tensor]:
    """``(register, vs, input, times) -> c``, the sum of what each weight and its coefficient v give, rounded once.

    For layers that :attr:`~fastlrp.plan.products.choice.Choice.adds_in_one_product` holds for; those of float32:
    :func:`fastlrp.plan.products.both.transpose_of_both`.
    """
    product = _narrow(b, layer, weights, positives, signed, multiply=False)

    def narrow(flow: Tensor, vs: Sequence[Tensor], x: Any, times: Any = None) -> Tensor:
        return product(flow, None, vs, x)

    if not layer.choice.looks_down or is_fused(b, layer):
        return narrow
    b.note_filtered("down", looked=True)
    opposites = [_opposite(layer, w, positive, signed) for w, positive in zip(weights, positives, strict=True)]
    return looked_narrow.transposed_of_both(partial(layer.layouts.looked, down=True), positives, opposites, narrow)


def plain_products(layer: AffineLayer, weight: Tensor) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """``register -> register W`` of a linear layer, and its transpose."""
    linear = torch.nn.functional.linear
    if not layer.choice.is_reduced:
        return lambda f: _product.product(f, weight), lambda t: _product.linear(t, weight, None)
    narrow = layer.layouts.narrow(weight)
    return lambda f: f.to(reduced.DTYPE) @ narrow, lambda t: linear(t.to(reduced.DTYPE), narrow).to(t.dtype)


def _by_backend(
    b: Builder, layer: AffineLayer, weight: Tensor, weight_positive: Tensor | None, signed: bool, multiply: bool
) -> Callable[..., Tensor]:
    """:func:`transpose` by the operation of the backend."""
    is_linear, fused = layer.node.kind == "linear", is_fused(b, layer)
    name, geometry = ("linear_relevance" if is_linear else "conv_relevance"), getattr(layer, "geometry", None)
    relevance = b.operation(name)
    before: tuple[Any, ...] = () if is_linear else (list(layer.x.sizes[1:]), *layer.geometry.arguments)
    weight, part = for_kernel(b, layer, weight), for_kernel(b, layer, weight_positive)

    # Most layers have one coefficient, and no input's sign decides: then it is one product, bound beforehand.
    plain = not multiply and b.backend_of(name) == "torch"
    product = layer_calls.product(weight, layer.x.sizes, geometry) if plain else None

    def transposed(flow: Tensor, u: Tensor | None, v: Tensor | None, x: Any, times: Any = None) -> Tensor:
        given, split = (None, False) if x is False else (x, signed)
        if product is not None and v is None and u is not None:
            return product(flow, u, weight)
        if product is not None and u is None and not split and v is not None and part is not None:
            return product(flow, v, part)
        # A kernel that reads W for the first term takes W+ from it.
        positive = None if fused and u is not None else part
        result: Tensor = relevance(flow, weight, u, v, given, positive, *before, split, multiply)
        return result

    return transposed


def _by_packed(
    layer: AffineLayer, weight: Tensor, positive: Tensor | None, signed: bool, plain: Callable[..., Tensor]
) -> Callable[..., Tensor]:
    """:func:`transpose` with weights that are laid out beforehand; ``plain`` where there is no such way."""
    geometry = layer.geometry
    if few.pays(geometry, weight):
        narrow = layer.choice.is_narrow_few
        return few.transposed(weight, positive, list(layer.x.sizes[1:]), geometry, signed, plain, narrow)
    if few_channels(weight, geometry.transposed, geometry.groups):
        return plain
    laid_out = layer.layouts.looked if layer.choice.looks_down else layer.layouts.packed
    first, second = (None if w is None else laid_out(w, down=True) for w in (weight, positive))
    if first is None:  # A transpose that oneDNN has no kernel for.
        return plain
    both = None if positive is None or signed else layer.layouts.transpose_of_both([weight, positive])
    through = packed.transposed(first, second, _opposite(layer, weight, positive, signed), plain, both)
    if positive is None or not signed or not layer.choice.chooses_full:
        return through
    return point.Chosen(weight, positive, geometry, through, packed.fits)


def _of_bfloat16(
    b: Builder, layer: AffineLayer, weight: Tensor, positive: Tensor | None, signed: bool, multiply: bool
) -> Callable[..., Tensor]:
    """:func:`transpose` with products of bfloat16, or filtered where a look at the numbers allows it."""
    narrow = _narrow(b, layer, [weight], [] if positive is None else [positive], signed, multiply)
    if signed and positive is not None and layer.choice.chooses_full and not multiply:
        return point.Chosen(weight, positive, layer.geometry, narrow, packed.fits)
    if multiply or not layer.choice.looks_down or is_fused(b, layer):
        return narrow
    b.note_filtered("down", looked=True)
    opposite = _opposite(layer, weight, positive, signed)
    return looked_narrow.transposed(partial(layer.layouts.looked, down=True), weight, positive, opposite, narrow)


def _narrow(
    b: Builder, layer: AffineLayer, weights: Sequence[Tensor], positives: Sequence[Tensor], signed: bool,
    multiply: bool,
) -> Callable[..., Tensor]:  # fmt: skip
    """:func:`transpose` with products of bfloat16 alone, of weights side by side along their outputs."""
    b.note("bf16")
    whole = all(w.shape == layer.weight.shape for w in (*weights, *positives))  # Not Flat, which has one channel.
    if layer.choice.is_point and whole and not signed and not multiply:
        plain = cache(lambda: _narrow_by_torch(layer, weights, positives, signed, multiply))
        size, stride = list(layer.x.sizes[1:]), list(layer.geometry.stride)
        return point.Transposed(weights[0], positives, size, stride, lambda *given: plain()(*given))
    return _narrow_by_torch(layer, weights, positives, signed, multiply)


def _narrow_by_torch(
    layer: AffineLayer, weights: Sequence[Tensor], positives: Sequence[Tensor], signed: bool, multiply: bool
) -> Callable[..., Tensor]:
    """The same by operations of PyTorch."""
    layouts = layer.layouts
    if layer.node.kind == "linear":
        narrow, parts = ([layouts.narrow(w) for w in tensors] for tensors in (weights, positives))
        return reduced.through_linear(torch.cat(narrow), torch.cat(parts) if parts else None, signed, multiply)
    is_few = few_channels(weights[0], layer.geometry.transposed, layer.geometry.groups)
    turned = None if is_few else reduced.turned(layer.geometry, tuple(weights[0].shape[2:]))
    geometry = layer.geometry if turned is None else turned

    def side_by_side(tensors: Sequence[Tensor]) -> Tensor:
        found = [layouts.narrow(w, turned is not None) for w in tensors]
        return found[0] if len(found) == 1 else channels_last(torch.cat(found, 1 if geometry.transposed else 0))

    both = side_by_side(weights), side_by_side(positives) if positives else None
    faster = None
    if layer.choice.packs and not is_few:
        transposes = {id(w): layouts.narrow_transpose(w, turned) for w in both if w is not None}
        faster = packed.narrow_products({key: found for key, found in transposes.items() if found is not None})
    return reduced.through_conv(*both, list(layer.x.sizes[1:]), geometry, signed, multiply, faster)


def _opposite(layer: AffineLayer, weight: Tensor, positive: Tensor | None, signed: bool) -> packed.Prepared | None:
    """The transpose of what is left of a weight, where the input's sign decides."""
    if positive is None or not signed:
        return None
    return layer.layouts.transpose_of(lambda: weight - positive, looked=layer.choice.looks_down)
