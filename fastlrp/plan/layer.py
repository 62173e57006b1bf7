"""An affine node as its rules see it: merged parameters, forward, transpose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, cached_property, partial
from typing import Any, cast

import torch
from torch import Tensor

from fastlrp.aten import _product
from fastlrp.aten.conv import convolution, few_channels
from fastlrp.backends.dispatch import FUSED
from fastlrp.capture.canonizers import merged_parameters, norm_scale_shift
from fastlrp.capture.graph import Node
from fastlrp.plan.builder import Builder
from fastlrp.plan.forms import Affine
from fastlrp.plan.geometry import ConvGeometry, PoolGeometry
from fastlrp.plan.products import few, layer_calls, looked, looked_narrow, packed, point, reduced, winograd
from fastlrp.plan.products.channels_last import channels_last
from fastlrp.plan.products.layouts import Layouts
from fastlrp.precision import FULL, Products, instruction_set


class AffineLayer:
    """An affine node with its merged parameters: forward as a function of weight and bias, and its transpose.

    Attributes:
        is_reduced: whether its products read bfloat16, :mod:`fastlrp.plan.products.reduced`.
        is_point: whether these are one pass with what stands before and behind, :mod:`fastlrp.plan.products.point`.
        packs: whether those of float32 have weights that are laid out beforehand, :mod:`fastlrp.plan.products.packed`.
        filters: whether these may go by Winograd's filtering, :mod:`fastlrp.plan.products.winograd`; filters_sums:
            whether denominators and what flows down may, too, which products of bfloat16 on AMX are faster for.
        looks_ahead: whether the forward pass may where the rules do not allow it, after a look at the numbers,
            :mod:`fastlrp.plan.products.looked`; looks: whether denominators may, too; looks_down: and what flows down,
            which products of bfloat16 may be faster for.
        subtracts: whether what lowers outputs is what raises them less these, :mod:`fastlrp.plan.products.rest`.
    """

    def __init__(
        self, node: Node, products: Products = FULL, share: reduced.Share | None = None, may_pack: bool = False
    ) -> None:
        self.node = node
        self.x, self.y = node.inputs[0], node.output
        if node.kind == "batch_norm":
            scale, shift = norm_scale_shift(node)
            tail = (1,) * (len(self.x.shape) - 2)
            self.weight, self.bias = scale.view(-1, *tail), shift.view(-1, *tail)
        else:
            weight, merged = merged_parameters(node)
            self.weight = channels_last(weight) if node.kind == "conv" else weight
            self.bias = merged if merged is not None else None  # type: ignore[assignment]
        if node.kind == "conv":
            self.geometry = geometry_of(node)
        wanted = products.convolutions if node.kind == "conv" else products.matrices
        share, geometry = share or reduced.Share(), getattr(self, "geometry", None)
        self.is_reduced = wanted and reduced.pays(node.kind, self.work, share, geometry, len(self.x.shape) > 2)
        self.packs = may_pack and packed.pays(node.kind, self.work, len(self.x.shape), geometry, self.weight)
        if self.is_reduced and self.packs and instruction_set() != "AMX":
            self.is_reduced = not few.pays(geometry, self.weight)  # As fast in float32.
        self.is_point = self.is_reduced and self.packs and point.pays(geometry, self.weight)
        self.filters = self.packs and products.filtered and winograd.pays(geometry, self.weight, self.y.sizes[1:])
        self.filters_sums = self.filters and not (self.is_reduced and instruction_set() == "AMX")
        self.looks_ahead = self.filters and looked.pays(self.weight)
        self.looks = self.filters_sums and self.looks_ahead
        self.looks_down = self.looks
        if self.looks and self.is_reduced:
            self.looks_down = looked_narrow.pays(self.weight, self.y.sizes[1:])
        full = self.packs and products.filtered and (self.looks or not self.is_reduced)
        self.subtracts = full and geometry is not None and geometry.groups == 1
        self.layouts = Layouts(node.kind, geometry, self.weight.shape[2:], self.x.sizes[1:], self.y.sizes[1:])

    @staticmethod
    def of(b: Builder, node: Node) -> AffineLayer:
        """The node's layer, made once for all plans of the model under which it has the same products."""
        share = shares_of(b).get(node) if b.products.reduced else None
        may_pack, full = b.backend in ("auto", "cpu"), node in b.kept_full
        products = replace(b.products, convolutions=False, matrices=False) if full else b.products
        layer: AffineLayer = b.constant(("layer", node, full), lambda: AffineLayer(node, products, share, may_pack))
        return layer

    @cached_property
    def positive(self) -> Tensor:
        """``W+``."""
        return self.weight.clamp(min=0)

    @cached_property
    def negated(self) -> Tensor:
        """``-W``, whose positive part gives the negative one."""
        return -self.weight

    @cached_property
    def negated_positive(self) -> Tensor:
        """``(-W)+``."""
        return self.negated.clamp(min=0)

    @property
    def work(self) -> int:
        """Floating-point operations of one product with the weight, per sample."""
        return self.x.numel if self.node.kind == "batch_norm" else work_of(self.node)

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """``weight x + bias``."""
        if self.node.kind == "conv":
            return torch.convolution(x, weight, bias, *self.geometry.arguments)
        if self.node.kind == "linear":
            return torch.nn.functional.linear(x, weight, bias)
        return x * weight if bias is None else x * weight + bias

    def of_input(
        self, weight: Tensor, bias: Tensor | None, filtered: bool = False, takes_least: bool = False,
        alike: bool = False, rectified: bool = False,
    ) -> Callable[..., Tensor]:  # fmt: skip
        """``x -> weight x + bias``, with a weight that is laid out once where that pays.

        Args:
            filtered: whether it may go by Winograd's filtering. takes_least: whether it is also given what the result
                is at the least, never below zero; plain sums are that by themselves. alike: whether places that read
                the same numbers give the same, which plain sums do by themselves, too. rectified: whether a ReLU
                follows.
        """
        product, layouts = cast("packed.Prepared | None", None), self.layouts
        if self.packs:
            product = layouts.filtered(weight) if filtered and self.filters else layouts.packed(weight)

        def applied(x: Tensor, least: Tensor | None = None) -> Tensor:
            fits = product is not None and packed.fits(x)
            if fits and isinstance(product, winograd.Winograd):
                return product(x, bias, least=least, not_negative=takes_least or rectified, alike=alike)
            found = product(x, bias) if fits and product is not None else self.apply(x, weight, bias)
            # In place, and not by oneDNN itself, which makes 0 of NaN.
            return torch.relu_(found) if rectified else found

        return applied

    def goes_filtered(self, bounded: bool, signed: bool) -> bool:
        """Whether relevance goes down by Winograd's filtering. ``bounded``: see :meth:`transpose`."""
        return self.filters_sums and bounded and not signed

    def factor_of(self, bounded: bool, signed: bool) -> int | None:
        """Slot of the input where the transpose wants to be given it last, as what it is a factor of."""
        return self.x.index if self.looks_down and not self.goes_filtered(bounded, signed) else None

    def sum_of_one_sign(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """``weight x + bias`` whose terms all have one sign: with few digits it is still exact to these digits."""
        if not self.is_reduced:
            return self.of_input(weight, bias)(x)
        shift = None if bias is None else self.layouts.narrow_bias(bias)
        narrow, given = self.layouts.narrow(weight), x.to(reduced.DTYPE)
        if self.node.kind == "linear":
            return torch.nn.functional.linear(given, narrow, shift).to(x.dtype)
        if self.packs and packed.fits_narrow(given, self.geometry.stride):
            return self.layouts.narrow_packed(weight)(given, shift).to(x.dtype)
        return convolution(given, narrow, shift, *self.geometry.arguments).to(x.dtype)

    def part_key(self, negative: bool, has_no_bias: bool, in_full: bool = False) -> tuple[Any, ...]:
        """Under which a plan keeps the slot of ``P + b+``; ``in_full``: of float32, in spite of bfloat16 products."""
        return "part", self.node, negative, has_no_bias, self.is_reduced, in_full and self.is_reduced

    def _reduced_transpose(
        self, b: Builder, weights: Sequence[Tensor], positives: Sequence[Tensor], signed: bool, multiply: bool
    ) -> Callable[..., Tensor]:
        """:meth:`transpose` with products of bfloat16, of weights side by side along their outputs."""
        b.note("bf16")
        whole = all(w.shape == self.weight.shape for w in (*weights, *positives))  # Not Flat, which has one channel.
        if self.is_point and whole and not signed and not multiply:
            plain = cache(lambda: self._through_reduced(weights, positives, signed, multiply))
            size, stride = list(self.x.sizes[1:]), list(self.geometry.stride)
            return point.transposed(weights[0], positives, size, stride, lambda *given: plain()(*given))
        return self._through_reduced(weights, positives, signed, multiply)

    def _through_reduced(
        self, weights: Sequence[Tensor], positives: Sequence[Tensor], signed: bool, multiply: bool
    ) -> Callable[..., Tensor]:
        """The same by operations of PyTorch."""
        if self.node.kind == "linear":
            narrow, parts = ([self.layouts.narrow(w) for w in tensors] for tensors in (weights, positives))
            return reduced.through_linear(torch.cat(narrow), torch.cat(parts) if parts else None, signed, multiply)
        is_few = few_channels(weights[0], self.geometry.transposed, self.geometry.groups)
        turned = None if is_few else reduced.turned(self.geometry, tuple(weights[0].shape[2:]))
        geometry = self.geometry if turned is None else turned

        def side_by_side(tensors: Sequence[Tensor]) -> Tensor:
            found = [self.layouts.narrow(w, turned is not None) for w in tensors]
            return found[0] if len(found) == 1 else channels_last(torch.cat(found, 1 if geometry.transposed else 0))

        both = side_by_side(weights), side_by_side(positives) if positives else None
        faster = None
        if self.packs and not is_few:
            transposes = {id(w): self.layouts.narrow_transpose(w, turned) for w in both if w is not None}
            faster = packed.narrow_products({key: found for key, found in transposes.items() if found is not None})
        return reduced.through_conv(*both, list(self.x.sizes[1:]), geometry, signed, multiply, faster)

    @property
    def adds_in_one_product(self) -> bool:
        """Whether the products of several weights can be one with these side by side."""
        return self.is_reduced and (self.node.kind == "linear" or self.geometry.groups == 1)

    def transpose_of_both(
        self, b: Builder, weights: Sequence[Tensor], positives: Sequence[Tensor], signed: bool
    ) -> Callable[..., Tensor]:
        """``(register, vs, input, times) -> c``, the sum of what each weight and its coefficient v give, rounded once.

        For layers that :attr:`adds_in_one_product` holds for.
        """
        product = self._reduced_transpose(b, weights, positives, signed, multiply=False)

        def narrow(flow: Tensor, vs: Sequence[Tensor], x: Any, times: Any = None) -> Tensor:
            return product(flow, None, vs, x)

        if not self.looks_down or self._is_fused(b):
            return narrow
        b.note_filtered("down", looked=True)
        opposites = [self._opposite(w, positive, signed) for w, positive in zip(weights, positives, strict=True)]
        return looked_narrow.transposed_of_both(partial(self.layouts.looked, down=True), positives, opposites, narrow)

    def transpose(
        self, b: Builder, weight: Tensor, weight_positive: Tensor | None, signed: bool, multiply: bool,
        bounded: bool = False,
    ) -> Callable[..., Tensor]:  # fmt: skip
        """``(register, u, v, input) -> c`` by the selected backend; a False input is one known to be >= 0.

        ``bounded``: see :class:`fastlrp.plan.coefficients.Coefficients`.
        """
        filtered = self.goes_filtered(bounded, signed) and not multiply
        if self.is_reduced and not filtered:
            parts = [] if weight_positive is None else [weight_positive]
            narrow = self._reduced_transpose(b, [weight], parts, signed, multiply)
            if multiply or not self.looks_down or self._is_fused(b):
                return narrow
            b.note_filtered("down", looked=True)
            opposite = self._opposite(weight, weight_positive, signed)
            return looked_narrow.transposed(
                partial(self.layouts.looked, down=True), weight, weight_positive, opposite, narrow
            )
        before: tuple[Any, ...] = ()
        if self.node.kind == "linear":
            relevance = b.operation("linear_relevance")
        else:
            relevance = b.operation("conv_relevance")
            before = (list(self.x.sizes[1:]), *self.geometry.arguments)
        fused = self._is_fused(b)
        given = weight, weight_positive
        weight, part = self._for_kernel(b, weight), self._for_kernel(b, weight_positive)

        # Most layers have one coefficient, and no input's sign decides: then it is one product, bound beforehand.
        name, geometry = ("linear_relevance" if not before else "conv_relevance"), getattr(self, "geometry", None)
        plain = not multiply and b.backend_of(name) == "torch"
        product = layer_calls.product(weight, self.x.sizes, geometry) if plain else None

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

        if filtered:
            b.note_filtered("down")
            first, second = (None if w is None else self.layouts.filtered(w, down=True) for w in given)
            return packed.transposed(first, second, None, transposed)
        packs = self.packs and not fused and not multiply
        if packs and self.looks_down:
            b.note_filtered("down", looked=True)
        return self._packed_transpose(*given, signed, transposed) if packs else transposed

    def _opposite(self, weight: Tensor, positive: Tensor | None, signed: bool) -> packed.Prepared | None:
        """The transpose of what is left of a weight, where the input's sign decides."""
        if positive is None or not signed:
            return None
        return self.layouts.transpose_of(lambda: weight - positive, looked=self.looks_down)

    def _packed_transpose(
        self, weight: Tensor, positive: Tensor | None, signed: bool, plain: Callable[..., Tensor]
    ) -> Callable[..., Tensor]:
        """:meth:`transpose` with weights that are laid out beforehand; ``plain`` where there is no such way."""
        if few.pays(self.geometry, weight):
            return few.transposed(weight, positive, list(self.x.sizes[1:]), self.geometry, signed, plain)
        if few_channels(weight, self.geometry.transposed, self.geometry.groups):
            return plain
        laid_out = self.layouts.looked if self.looks_down else self.layouts.packed
        first, second = (None if w is None else laid_out(w, down=True) for w in (weight, positive))
        if first is None:  # A transpose that oneDNN has no kernel for.
            return plain
        return packed.transposed(first, second, self._opposite(weight, positive, signed), plain)

    def plain_products(self, weight: Tensor) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """``register -> register W`` of a linear layer, and its transpose."""
        linear = torch.nn.functional.linear
        if not self.is_reduced:
            return lambda f: _product.product(f, weight), lambda t: _product.linear(t, weight, None)
        narrow = self.layouts.narrow(weight)
        return lambda f: f.to(reduced.DTYPE) @ narrow, lambda t: linear(t.to(reduced.DTYPE), narrow).to(t.dtype)

    def unpooled(
        self, b: Builder, weight: Tensor, weight_positive: Tensor | None, signed: bool
    ) -> Callable[..., Tensor] | None:
        """``(pooled register, index, pool's geometry, u, v, input) -> c`` below a max-pool, if a kernel does both."""
        fits = self.node.kind == "conv" and not self.geometry.transposed
        if not fits or b.backend_of("conv_unpooled_relevance") not in FUSED:
            return None
        relevance = b.operation("conv_unpooled_relevance")
        stride, padding, dilation, _, _, groups = self.geometry.arguments
        sizes = list(self.y.sizes[1:]), list(self.x.sizes[1:])
        weight, part = self._for_kernel(b, weight), self._for_kernel(b, weight_positive)

        def unpooled_transposed(
            flow: Tensor, index: Tensor, pool: PoolGeometry, u: Tensor | None, v: Tensor | None, x: Any
        ) -> Tensor:
            given, split = (None, False) if x is False else (x, signed)
            positive = None if u is not None else part
            result: Tensor = relevance(
                flow, index, weight, u, v, given, positive, sizes[0], *pool.arguments, sizes[1], stride, padding,
                dilation, groups, split, False,
            )  # fmt: skip
            return result

        return unpooled_transposed

    def _is_fused(self, b: Builder) -> bool:
        return b.backend_of("linear_relevance" if self.node.kind == "linear" else "conv_relevance") in FUSED

    def _for_kernel(self, b: Builder, weight: Any) -> Any:
        """A convolution's weight with its outputs innermost, as tensor cores want float32: a product sums over them."""
        if weight is None or self.node.kind != "conv" or not self._is_fused(b):
            return weight
        outputs = 1 if self.geometry.transposed else 0
        return weight.movedim(outputs, -1).contiguous().movedim(-1, outputs)

    def form(
        self,
        b: Builder,
        products: Sequence[tuple[Tensor, int, bool]],
        sign: int | None = None,
        factors: tuple[int, int] | None = None,
        gamma: float | None = None,
        bounded: bool = False,
    ) -> Affine | None:
        """The same in the terms of the sparse kernels: ``(weight, coefficient's slot, splits by the input's sign)``."""
        plain = self.node.kind == "conv" or (self.node.kind == "linear" and len(self.x.shape) == 2)
        if not (plain and b.has_sparse_kernels):
            return None
        if self.node.kind == "conv" and not 3 <= len(self.x.shape) <= 5:
            return None
        geometry = self.geometry if self.node.kind == "conv" else ConvGeometry()
        weights, slots, splits = zip(*products, strict=True)
        if self.node.kind == "linear":
            weights = tuple(w.contiguous().unsqueeze(2) for w in weights)
        if (sign is not None or factors is not None) and geometry.groups != 1:
            return None  # Twice the input channels belong to one group only.
        unique = tuple(dict.fromkeys(slots)) if factors is not None else slots
        sizes = self.y.sizes, self.x.sizes
        affine = (weights, unique, splits, sign, factors, geometry, *sizes, self.work, self.node.path, gamma)
        filtered = self.goes_filtered(bounded, sign is not None) or self.looks_down
        return Affine(*affine, is_reduced=self.is_reduced, is_filtered=filtered)


def geometry_of(node: Node) -> ConvGeometry:
    """Of a convolution."""
    a = node.attributes
    return ConvGeometry(a["stride"], a["padding"], a["dilation"], a["transposed"], a["output_padding"], a["groups"])


def shares_of(b: Builder) -> dict[Node, reduced.Share]:
    """Of the work of the builder's graph, by convolution and linear layer."""

    def shares() -> dict[Node, reduced.Share]:
        weighted = [node for node in b.graph.nodes if node.kind in ("conv", "linear")]
        return reduced.shares([(node, node.kind == "conv", work_of(node)) for node in weighted])

    found: dict[Node, reduced.Share] = b.constant(("shares",), shares)
    return found


def work_of(node: Node) -> int:
    """Floating-point operations of one product with the weight of a convolution or linear layer, per sample."""
    outer = node.inputs[0] if node.attributes.get("transposed") else node.output
    weight = node.attributes["weight"].tensor()
    return 2 * outer.numel * (weight.numel() // weight.shape[0])


def same_layout(layer: AffineLayer, coefficient: Tensor | None) -> Tensor | None:
    """Coefficients lie in memory as the relevance that they multiply does."""
    return coefficient if coefficient is None or layer.node.kind != "conv" else channels_last(coefficient)
