"""A layer's way down in the terms of the sparse kernels, which compute alive neurons only."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fastlrp.plan.builder import Builder
from fastlrp.plan.forms import Affine
from fastlrp.plan.geometry import ConvGeometry
from fastlrp.plan.layer import AffineLayer


def sparse_form(
    b: Builder,
    layer: AffineLayer,
    products: Sequence[tuple[Tensor, int, bool]],
    sign: int | None = None,
    factors: tuple[int, int] | None = None,
    gamma: float | None = None,
    bounded: bool = False,
) -> Affine | None:
    """The form of a layer's step; None for layers that the sparse kernels do not take.

    Args:
        products: ``(weight, coefficient's slot, splits by the input's sign)`` of each. sign, factors, gamma: see
            :class:`fastlrp.plan.forms.Affine`. bounded: see :class:`fastlrp.plan.coefficients.Coefficients`.
    """
    node, x, y, choice = layer.node, layer.x, layer.y, layer.choice
    plain = node.kind == "conv" or (node.kind == "linear" and len(x.shape) == 2)
    if not (plain and b.has_sparse_kernels):
        return None
    if node.kind == "conv" and not 3 <= len(x.shape) <= 5:
        return None
    geometry = layer.geometry if node.kind == "conv" else ConvGeometry()
    weights, slots, splits = zip(*products, strict=True)
    if node.kind == "linear":
        weights = tuple(w.contiguous().unsqueeze(2) for w in weights)
    if (sign is not None or factors is not None) and geometry.groups != 1:
        return None  # Twice the input channels belong to one group only.
    unique = tuple(dict.fromkeys(slots)) if factors is not None else slots
    affine = (weights, unique, splits, sign, factors, geometry, y.sizes, x.sizes, layer.work, node.path, gamma)
    filtered = layer.goes_filtered(bounded, sign is not None) or choice.looks_down
    chosen = choice.chooses_full and sign is not None
    return Affine(*affine, is_reduced=choice.is_reduced, is_filtered=filtered, is_chosen=chosen)
