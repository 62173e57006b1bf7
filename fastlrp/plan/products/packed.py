"""Convolutions of float32 on a CPU whose weights lie as oneDNN's kernels read them, laid out once for each plan.

PyTorch's own call lays the weight out anew each time. That is a third of a 3x3 layer on maps of 14x14, and for kernels
of one pixel the library then takes a way that is half as fast (64 channels to 256, 56x56: 1.0 ms, here 0.46; AMD EPYC
with AVX-512, one thread). Compiled models use the same operations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor

from fastlrp.aten import conv as aten_conv
from fastlrp.plan.geometry import ConvGeometry
from fastlrp.plan.products import reduced
from fastlrp.plan.products.looked import Looked
from fastlrp.plan.products.point import Full
from fastlrp.plan.products.winograd import Winograd
from fastlrp.precision import switch

LEAST_WORK = 1 << 22
"""Floating-point operations per sample below which a layer's call costs more than its weight's layout."""

_NAMES = (
    "_reorder_convolution_weight",
    "_convolution_pointwise",
    "_reorder_convolution_transpose_weight",
    "_convolution_transpose_pointwise",
)


@cache
def _operations() -> tuple[Any, ...] | None:
    """PyTorch's, in the order of their names; None where this PyTorch has no oneDNN, or they take other arguments."""
    if not torch.backends.mkldnn.is_available():
        return None
    try:
        layout, conv, layout_back, back = found = tuple(getattr(torch.ops.mkldnn, name).default for name in _NAMES)
        # Spelled out: the answer is kept, and the program's defaults may be others when it is first asked for.
        plain: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
        x, weight, one, none = torch.ones(1, 1, 2, 2, **plain), torch.ones(1, 1, 1, 1, **plain), [1, 1], [0, 0]
        rest: tuple[Any, ...] = (1, "none", [], "")
        there = conv(x, layout(weight, none, one, one, 1, [1, 1, 2, 2]), None, none, one, one, *rest)
        laid_out = layout_back(weight, none, none, one, one, 1, [1, 1, 2, 2])
        here = back(x, laid_out, None, none, none, one, one, *rest)
    except (AttributeError, RuntimeError, TypeError):
        return None
    return found if torch.equal(there, x) and torch.equal(here, x) else None


def pays(kind: str, work: int, dims: int, geometry: ConvGeometry | None, weight: Tensor) -> bool:
    """Whether a layer's products take a weight that is laid out beforehand.

    Args:
        kind: of the layer. work: floating-point operations per sample. dims: axes of its input, the batch included.
    """
    large = kind == "conv" and dims == 4 and work >= LEAST_WORK and weight.numel() > 0
    plain = weight.dtype == torch.float32 and weight.device.type == "cpu" and geometry is not None
    return large and plain and geometry is not None and not geometry.transposed and _operations() is not None


class Packed:
    """``x -> W x + b`` of a 2-D convolution, or of its transpose, for maps that lie channels-last.

    Args:
        weight: gives the weight when it is first needed. geometry: of the convolution. missing: of a transpose what
            it adds at the far end; None for a convolution as it is.
    """

    def __init__(self, weight: Callable[[], Tensor], geometry: ConvGeometry, missing: list[int] | None = None) -> None:
        self._make, self._packed = weight, cast("Tensor | None", None)
        self._missing = missing
        g = geometry
        before = [] if missing is None else [missing]
        self._geometry = (g.padding, *before, g.stride, g.dilation, g.groups)

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Only for operands that :func:`fits` is true of."""
        operations = _operations()
        assert operations is not None
        layout, convolution = operations[:2] if self._missing is None else operations[2:]
        x = aten_conv.channels_last(x)
        if self._packed is None:
            self._packed = layout(self._make().detach(), *self._geometry, list(x.shape))
        result: Tensor = convolution(x, self._packed, bias, *self._geometry, "none", [], "")
        return result

    def scaled(self, flow: Tensor, coefficient: Tensor) -> Tensor:
        """``(B, K, Co, *S')`` times ``(B, Co, *S')`` through the weight: ``(B, K, Ci, *S)``."""
        result = self((flow * coefficient.unsqueeze(1)).flatten(0, 1))
        return result.view(*flow.shape[:2], *result.shape[1:])


def fits(x: Tensor) -> bool:
    """Whether the operations take an operand: not where a derivative, a transform or a switch of PyTorch looks on."""
    plain = reduced.is_plain(x) and x.dtype == torch.float32 and torch._C._get_mkldnn_enabled()
    return plain and switch("conv") in ("none", "ieee")


def fits_narrow(x: Tensor, stride: Sequence[int] = (1, 1)) -> bool:
    """The same for an operand of bfloat16, of maps not shorter than the strides (``convolution`` of aten)."""
    plain = reduced.is_plain(x) and x.dtype == reduced.DTYPE and torch._C._get_mkldnn_enabled()
    return plain and all(size >= step for size, step in zip(x.shape[-2:], stride, strict=True))


def narrow_products(weights: Mapping[int, Packed]) -> Callable[[Tensor, Tensor], Tensor | None]:
    """``(rows, W) -> W^T rows``, ``(B, K, Co, *S') -> (B, K, Ci, *S)`` in bfloat16; None where that goes another way.

    Args:
        weights: the transpose of each weight, by the weight's identity.
    """

    def product(rows: Tensor, matrix: Tensor) -> Tensor | None:
        transpose = weights.get(id(matrix))
        if transpose is None or not fits_narrow(rows):
            return None
        result = transpose(rows.flatten(0, 1))
        return result.view(*rows.shape[:2], *result.shape[1:])

    return product


def of_transpose(
    weight: Callable[[], Tensor], geometry: ConvGeometry, kernel: Sequence[int], size: Sequence[int],
    out: Sequence[int],
) -> Packed | None:  # fmt: skip
    """``(N, Co, *S') -> (N, Ci, *S)``, which is a convolution itself where there are no strides; None for odd ones.

    Args:
        weight: gives the convolution's own. kernel: its ``(h, w)``. size: of its input. out: of its output.
    """
    g, turned = geometry, reduced.turned(geometry, tuple(kernel))
    if turned is not None:
        return Packed(lambda: last(reduced.turned_weight(weight(), g.groups)), turned)
    missing = aten_conv.missing_sizes(
        tuple(size), torch.Size(out), tuple(g.stride), tuple(g.padding), tuple(g.dilation), torch.Size(kernel)
    )
    fitting = all(0 <= extra < step for extra, step in zip(missing, g.stride, strict=True))
    return Packed(weight, g, missing) if fitting and g.groups == 1 else None


Prepared = Packed | Winograd | Looked | Full
"""A convolution, or its transpose, by a weight in another form."""


def last(weight: Tensor) -> Tensor:
    """The same with its channels innermost."""
    return weight.contiguous(memory_format=torch.channels_last)


def transposed(
    weight: Prepared | None,
    positive: Prepared | None,
    negative: Prepared | None,
    plain: Callable[..., Tensor],
    both: Full | None = None,
) -> Callable[..., Tensor]:
    """``(register, u, v, input, times) -> c`` by weights that are laid out beforehand; ``times``: of ``Looked.scaled``.

    Args:
        weight: of the first term. positive, negative: of the second; negative only where the input's sign decides.
        plain: the same by the weights as they are, for operands that :func:`fits` is not true of. both: of both terms
            in one product.
    """

    def through(flow: Tensor, u: Tensor | None, v: Tensor | None, x: Any, times: Tensor | None = None) -> Tensor:
        if not fits(flow) or any(t is not None and reduced.is_traced(t) for t in (u, v)):
            return plain(flow, u, v, x)
        if both is not None and u is not None and v is not None:
            return both.through(flow, [u, v])

        def product(coefficient: Tensor, by: Prepared | None) -> Tensor:
            assert by is not None
            if isinstance(by, Looked):
                return by.scaled(flow, coefficient, times if times is not None and fits(times) else None)
            return by.scaled(flow, coefficient)

        total = None if u is None else product(u, weight)
        if v is None:
            assert total is not None, "u or v must be given"
            return total
        term = product(v, positive)
        if negative is not None and isinstance(x, Tensor):
            sign = x.unsqueeze(1)
            term = torch.where(sign > 0, term, product(v, negative)).masked_fill_(sign == 0, 0)
        return term if total is None else total.add_(term)

    return through
