"""What the products of one layer are, in one place: which of the ways in this folder it takes.

It is settled once for each layer of a plan, by the layer's sizes and weight, the plan's precision and the processor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from fastlrp.capture.graph import Node
from fastlrp.plan.geometry import ConvGeometry
from fastlrp.plan.products import depth, few, looked, looked_narrow, packed, point, reduced, winograd
from fastlrp.precision import Products, instruction_set


@dataclass(frozen=True)
class Choice:
    """What the products of a layer are.

    Attributes:
        is_reduced: whether they read bfloat16, :mod:`fastlrp.plan.products.reduced`.
        is_narrow_few: whether those of what flows down do where others are of float32,
            :mod:`fastlrp.plan.products.few`.
        adds_in_one_product: whether then those of several weights can be one with these side by side.
        is_point: whether these are one pass with what stands before and behind, :mod:`fastlrp.plan.products.point`.
        is_full_point: whether those of float32 are.
        chooses_full: whether those of float32 are, where the input's sign chooses between two weights; without AMX also
            where others read bfloat16, since two products and the choice between them take longer.
        is_depth: whether relevance goes down by the kernel of depthwise layers, :mod:`fastlrp.plan.products.depth`.
        packs: whether those of float32 have weights that are laid out beforehand, :mod:`fastlrp.plan.products.packed`.
        filters: whether these may go by Winograd's filtering, :mod:`fastlrp.plan.products.winograd`.
        filters_sums: whether denominators and what flows down may, too, which products of bfloat16 on AMX are faster
            for.
        looks_ahead: whether the forward pass may where the rules do not allow it, after a look at the numbers,
            :mod:`fastlrp.plan.products.looked`.
        looks: whether denominators may after a look, too.
        looks_down: and what flows down, which products of bfloat16 may be faster for.
        subtracts: whether what lowers outputs is what raises them less these, :mod:`fastlrp.plan.products.rest`.
    """

    is_reduced: bool
    is_narrow_few: bool
    adds_in_one_product: bool
    is_point: bool
    is_full_point: bool
    chooses_full: bool
    is_depth: bool
    packs: bool
    filters: bool
    filters_sums: bool
    looks_ahead: bool
    looks: bool
    looks_down: bool
    subtracts: bool

    @property
    def takes_bf16(self) -> bool:
        """Whether what flows down may be of bfloat16."""
        return self.is_reduced or self.is_narrow_few


def choice_for(
    node: Node, weight: Tensor, geometry: ConvGeometry | None, work: int, products: Products, share: reduced.Share,
    may_pack: bool, inputs: Callable[[], Tensor | None] = lambda: None,
) -> Choice:  # fmt: skip
    """What the products of a node with a weight are.

    Args:
        weight: with a batch norm merged in. geometry: of a convolution. work: floating-point operations per sample.
        products: of the plan. share: of the model's work. may_pack: whether the plan's backend takes weights that are
            laid out beforehand. inputs: gives how large the activations of each input channel are.
    """
    dims, size, has_amx = len(node.inputs[0].shape), node.output.sizes[1:], instruction_set() == "AMX"
    wanted = products.convolutions if node.kind == "conv" else products.matrices
    is_reduced = wanted and reduced.pays(node.kind, work, share, geometry, dims > 2)
    packs = may_pack and packed.pays(node.kind, work, dims, geometry, weight)
    is_narrow_few = False
    if is_reduced and packs and not has_amx and few.pays(geometry, weight):
        is_reduced, is_narrow_few = False, few.pays_narrow(geometry, weight)
    is_depth = may_pack and depth.pays(geometry, weight, work)
    is_reduced = is_reduced and not is_depth
    has_one_group = geometry is not None and geometry.groups == 1
    filters = packs and products.filtered and winograd.pays(geometry, weight, size, inputs)
    filters_sums = filters and not (is_reduced and has_amx)
    looks_ahead = filters and looked.pays(weight)
    looks = filters_sums and looks_ahead
    return Choice(
        is_reduced=is_reduced,
        is_narrow_few=is_narrow_few,
        adds_in_one_product=is_reduced and (node.kind == "linear" or has_one_group),
        is_point=is_reduced and packs and point.pays(geometry, weight),
        chooses_full=packs and point.pays_chosen(geometry, weight) and not (is_reduced and has_amx),
        is_depth=is_depth,
        is_full_point=not is_reduced and packs and point.pays_full(geometry, weight),
        packs=packs,
        filters=filters,
        filters_sums=filters_sums,
        looks_ahead=looks_ahead,
        looks=looks,
        looks_down=looks and (not is_reduced or looked_narrow.pays(weight, size)),
        subtracts=packs and products.filtered and (looks or not is_reduced) and has_one_group,
    )
