"""A layer's weights in the forms that products want, each made once and remembered as long as the weight lives.

That may be as long as the model, or as one plan of many: ``W + gamma W+``.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar, cast

import torch
from torch import Tensor

from fastlrp.plan.geometry import ConvGeometry
from fastlrp.plan.products import reduced
from fastlrp.plan.products.channels_last import channels_last
from fastlrp.plan.products.looked import Looked, spreads
from fastlrp.plan.products.packed import Packed, of_transpose
from fastlrp.plan.products.point import Full, Point, pays_full
from fastlrp.plan.products.winograd import Winograd

T = TypeVar("T")


class _OfWeights(Generic[T]):
    """What was made of a weight, in each of two forms: remembered by its identity, as long as the weight lives."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, bool], tuple[weakref.ref[Tensor], T]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def get(self, weight: Tensor, turned: bool, make: Callable[[weakref.ref[Tensor]], T]) -> T:
        """What ``make`` gives, which must not hold the weight itself."""
        key, known = (id(weight), turned), self._known
        if key not in known:
            kept = weakref.ref(weight, lambda gone: known.pop(key, None))
            known[key] = kept, make(kept)
        return known[key][1]


class Layouts:
    """Weights of one layer in other forms.

    Who asks for one keeps the weight until the first product, which reads it.

    Args:
        kind: of the layer. geometry: of a convolution. kernel, size, out: spatial sizes of its weight, input and
            output.
    """

    def __init__(
        self, kind: str, geometry: ConvGeometry | None, kernel: Sequence[int], size: Sequence[int], out: Sequence[int]
    ) -> None:
        self._is_conv, self._geometry = kind == "conv", geometry
        self._sizes = kernel, size, out
        self._narrow: _OfWeights[Tensor] = _OfWeights()
        self._narrow_bias: _OfWeights[Tensor] = _OfWeights()
        self._packed: _OfWeights[Packed | Full | None] = _OfWeights()
        self._narrow_packed: _OfWeights[Packed] = _OfWeights()
        self._point: _OfWeights[Point] = _OfWeights()
        self._filtered: _OfWeights[Winograd] = _OfWeights()
        self._both: _OfWeights[Winograd] = _OfWeights()
        self._looked: _OfWeights[Looked | Packed | Full | None] = _OfWeights()

    @property
    def _of_conv(self) -> ConvGeometry:
        assert self._geometry is not None
        return self._geometry

    def narrow(self, weight: Tensor, turned: bool = False) -> Tensor:
        """In bfloat16; ``turned``: as :func:`reduced.turned_weight` gives it."""

        def made(_: weakref.ref[Tensor]) -> Tensor:
            found = reduced.turned_weight(weight, self._of_conv.groups) if turned else weight
            found = found.to(reduced.DTYPE)
            return channels_last(found) if self._is_conv else found

        return self._narrow.get(weight, turned, made)

    def narrow_bias(self, bias: Tensor) -> Tensor:
        """The bias in bfloat16, made once."""
        return self._narrow_bias.get(bias, False, lambda _: bias.to(reduced.DTYPE))

    def packed(self, weight: Tensor, down: bool = False) -> Packed | Full | None:
        """As oneDNN's kernels read it, or those of one pixel; ``down``: for the transpose."""

        def made(kept: weakref.ref[Tensor]) -> Packed | Full | None:
            read = cast("Callable[[], Tensor]", kept)
            if pays_full(self._of_conv, weight):
                return Full(lambda: [read()], self._of_conv, self._sizes[1] if down else None)
            return of_transpose(read, self._of_conv, *self._sizes) if down else Packed(read, self._of_conv)

        return self._packed.get(weight, down, made)

    def transpose_of_both(self, weights: Sequence[Tensor]) -> Full | None:
        """Of the sum of both products in one, not remembered; None where there is no such way."""
        if not all(pays_full(self._of_conv, weight) for weight in weights):
            return None
        return Full(lambda: weights, self._of_conv, self._sizes[1])

    def transpose_of(self, weight: Callable[[], Tensor], looked: bool = False) -> Looked | Packed | None:
        """The same for the transpose, not remembered. ``looked``: as :meth:`looked` gives it."""
        plain = of_transpose(weight, self._of_conv, *self._sizes)
        if not looked or plain is None or not spreads(weight(), down=True):
            return plain
        return Looked(Winograd(weight, self._of_conv, down=True), plain)

    def narrow_packed(self, weight: Tensor) -> Packed:
        """In bfloat16, as oneDNN's kernels read it."""

        def made(_: weakref.ref[Tensor]) -> Packed:
            narrow = self.narrow(weight)
            return Packed(lambda: narrow, self._of_conv)

        return self._narrow_packed.get(weight, False, made)

    def narrow_transpose(self, narrow: Tensor, turned: ConvGeometry | None) -> Packed | None:
        """The transpose of a weight that is bfloat16 already, and turned round where that gives a convolution."""
        if turned is not None:
            return Packed(lambda: narrow, turned)
        return of_transpose(lambda: narrow, self._of_conv, *self._sizes)

    def point(self, weight: Tensor) -> Point:
        """In bfloat16, as products of one pixel read it."""

        def made(kept: weakref.ref[Tensor]) -> Point:
            read = cast("Callable[[], Tensor]", kept)
            return Point(lambda: [read()], down=False)

        return self._point.get(weight, False, made)

    def filtered(self, weight: Tensor, down: bool = False) -> Winograd:
        """As Winograd's filtering reads it; ``down``: for the transpose."""

        def made(kept: weakref.ref[Tensor]) -> Winograd:
            return Winograd(cast("Callable[[], Tensor]", kept), self._of_conv, down)

        return self._filtered.get(weight, down, made)

    def filtered_of_both(self, first: Tensor, second: Tensor) -> Winograd:
        """The transposes of two weights, one behind the other along their outputs; remembered as long as the first."""
        other = weakref.ref(second)

        def made(kept: weakref.ref[Tensor]) -> Winograd:
            def both() -> Tensor:
                return torch.cat([cast("Tensor", weight()).detach() for weight in (kept, other)], 0)

            return Winograd(both, self._of_conv, down=True)

        return self._both.get(first, True, made)

    def looked(self, weight: Tensor, down: bool = False) -> Looked | Packed | Full | None:
        """Filtered where a look at the numbers allows it; as :meth:`packed` for a weight that never allows it."""

        def made(_: weakref.ref[Tensor]) -> Looked | Packed | Full | None:
            plain = self.packed(weight, down)
            filtered = isinstance(plain, Packed) and spreads(weight, down)
            return Looked(self.filtered(weight, down), plain) if filtered else plain

        return self._looked.get(weight, down, made)
