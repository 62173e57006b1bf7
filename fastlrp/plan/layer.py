"""An affine node as its rules see it: merged parameters, what its products are, the products of its input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, cast

import torch
from torch import Tensor

from fastlrp.aten.conv import convolution
from fastlrp.capture.canonizers import merged_parameters, norm_scale_shift
from fastlrp.capture.graph import Node
from fastlrp.plan.builder import Builder
from fastlrp.plan.geometry import ConvGeometry
from fastlrp.plan.products import packed, point, reduced, winograd
from fastlrp.plan.products.channel_sizes import sizes_given
from fastlrp.plan.products.channels_last import channels_last
from fastlrp.plan.products.choice import choice_for
from fastlrp.plan.products.layouts import Layouts
from fastlrp.precision import FULL, Products


class AffineLayer:
    """An affine node with its merged parameters: forward as a function of weight and bias.

    Its way down is :func:`fastlrp.plan.products.transposes.transpose`.

    Attributes:
        choice: what its products are. layouts: its weights in the forms that these want.
    """

    def __init__(
        self, node: Node, products: Products = FULL, share: reduced.Share | None = None, may_pack: bool = False,
        inputs: Callable[[], Tensor | None] = lambda: None,
    ) -> None:  # fmt: skip
        self.node = node
        self.x, self.y = node.inputs[0], node.output
        self.bias: Tensor | None
        if node.kind == "batch_norm":
            scale, shift = norm_scale_shift(node)
            tail = (1,) * (len(self.x.shape) - 2)
            self.weight, self.bias = scale.view(-1, *tail), shift.view(-1, *tail)
        else:
            weight, self.bias = merged_parameters(node)
            self.weight = channels_last(weight) if node.kind == "conv" else weight
        if node.kind == "conv":
            self.geometry = geometry_of(node)
        share, geometry = share or reduced.Share(), getattr(self, "geometry", None)
        self.choice = choice_for(node, self.weight, geometry, self.work, products, share, may_pack, inputs)
        self.layouts = Layouts(node.kind, geometry, self.weight.shape[2:], self.x.sizes[1:], self.y.sizes[1:])

    @staticmethod
    def of(b: Builder, node: Node) -> AffineLayer:
        """The node's layer, made once for all plans of the model under which it has the same products."""
        share = shares_of(b).get(node) if b.products.reduced else None
        may_pack, full = b.backend in ("auto", "cpu"), node in b.kept_full
        products = replace(b.products, convolutions=False, matrices=False) if full else b.products
        made = partial(AffineLayer, node, products, share, may_pack, partial(sizes_given, b, node))
        layer: AffineLayer = b.constant(("layer", node, full), made)
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

    def of_each_input(self, numbers: Tensor) -> Tensor:
        """``(1, *x.sizes)`` of numbers that broadcast to the layer's input, zeros where a padding of its own stands."""
        own: list[int] = self.node.attributes.get("own_padding", [])
        spatial = [size - more for size, more in zip(self.x.sizes[1:], own[::-1][::2], strict=True)] if own else []
        sizes = (self.x.sizes[0], *spatial) if own else self.x.sizes
        found = numbers.expand(1, *sizes)
        return torch.nn.functional.pad(found, own) if own else found

    def to_inputs(self, relevance: Tensor) -> Tensor:
        """``(B, K, *x.sizes)``, zeros where a padding of the layer's own stands."""
        own = self.node.attributes.get("own_padding")
        pad = torch.nn.functional.pad
        return relevance if own is None else pad(pad(relevance, [-amount for amount in own]), own)

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
        if self.choice.packs:
            product = layouts.filtered(weight) if filtered and self.choice.filters else layouts.packed(weight)

        def applied(x: Tensor, least: Tensor | None = None) -> Tensor:
            fits = product is not None and packed.fits(x)
            if fits and isinstance(product, winograd.Winograd):
                return product(x, bias, least=least, not_negative=takes_least or rectified, alike=alike)
            if fits and isinstance(product, point.Full):
                return product(x, bias, rectified)
            found = product(x, bias) if fits and product is not None else self.apply(x, weight, bias)
            # In place, and not by oneDNN itself, which makes 0 of NaN.
            return torch.relu_(found) if rectified else found

        return applied

    def goes_filtered(self, bounded: bool, signed: bool) -> bool:
        """Whether relevance goes down by Winograd's filtering without a look at the numbers.

        ``bounded``: see :class:`fastlrp.plan.coefficients.Coefficients`.
        """
        return self.choice.filters_sums and bounded and not signed

    def factor_of(self, bounded: bool, signed: bool) -> int | None:
        """Slot of the input where the transpose wants to be given it last, as what it is a factor of."""
        return self.x.index if self.choice.looks_down and not self.goes_filtered(bounded, signed) else None

    def sum_of_one_sign(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """``weight x + bias`` whose terms all have one sign: with few digits it is still exact to these digits."""
        if not self.choice.is_reduced:
            return self.of_input(weight, bias)(x)
        shift = None if bias is None else self.layouts.narrow_bias(bias)
        narrow, given = self.layouts.narrow(weight), x.to(reduced.DTYPE)
        if self.node.kind == "linear":
            return torch.nn.functional.linear(given, narrow, shift).to(x.dtype)
        if self.choice.packs and packed.fits_narrow(given, self.geometry.stride):
            return self.layouts.narrow_packed(weight)(given, shift).to(x.dtype)
        return convolution(given, narrow, shift, *self.geometry.arguments).to(x.dtype)

    def part_key(self, negative: bool, has_no_bias: bool, in_full: bool = False) -> tuple[Any, ...]:
        """Under which a plan keeps the slot of ``P + b+``; ``in_full``: of float32, in spite of bfloat16 products."""
        return "part", self.node, negative, has_no_bias, self.choice.is_reduced, in_full and self.choice.is_reduced


def geometry_of(node: Node) -> ConvGeometry:
    """The geometry of a convolution, from its node's attributes."""
    a = node.attributes
    return ConvGeometry(a["stride"], a["padding"], a["dilation"], a["transposed"], a["output_padding"], a["groups"])


def shares_of(b: Builder) -> dict[Node, reduced.Share]:
    """Of the work of the builder's graph, by convolution and linear layer."""

    def shares() -> dict[Node, reduced.Share]:
        nodes = [node for node in b.graph.nodes if node.kind in ("conv", "linear")]
        weighted = [n for n in nodes if all(v.has_batch_first for v in (n.inputs[0], n.output))]
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
