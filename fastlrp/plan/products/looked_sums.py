"""Forward products that go by the filtering where a look at the numbers allows it, as callables of slots."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from fastlrp.plan.layer import AffineLayer
from fastlrp.plan.products import packed
from fastlrp.plan.products.looked import Looked


def is_looked(layer: AffineLayer, weight: Tensor) -> bool:
    """Whether products with this weight ever go so."""
    return isinstance(layer.layouts.looked(weight), Looked)


def looked(layer: AffineLayer, weight: Tensor, bias: Tensor | None, alike: bool = False) -> Callable[..., Tensor]:
    """``x -> weight x + bias``, which may also be given what the result is at the least.

    ``alike``: whether places that read the same numbers give the same.
    For layers that :attr:`~fastlrp.plan.products.choice.Choice.looks` holds for.
    """
    product, exact = layer.layouts.looked(weight), layer.of_input(weight, bias)

    def applied(x: Tensor, least: Tensor | None = None) -> Tensor:
        return product(x, bias, least, alike) if isinstance(product, Looked) and packed.fits(x) else exact(x)

    return applied


def denominators(layer: AffineLayer, weight: Tensor, bias: Tensor | None) -> Callable[..., Tensor]:
    """``(x, divided) -> weight x + bias`` whose terms are at least zero; ``divided``: see :meth:`Looked.sums`.

    For layers that :attr:`~fastlrp.plan.products.choice.Choice.looks` holds for.
    """
    product, exact = layer.layouts.looked(weight), layer.of_input(weight, bias)

    def summed(x: Tensor, divided: Tensor) -> Tensor:
        if isinstance(product, Looked) and packed.fits(x) and packed.fits(divided):
            return product.sums(x, weight, bias, divided)
        return exact(x)

    return summed
