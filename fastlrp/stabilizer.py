"""The stabilizer: what keeps a denominator away from zero."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Stabilizer:
    """Shift or clip a denominator away from zero: ``st(z) = z + epsilon * sgn(z)`` with ``sgn(0) = +1``.

    Args:
        epsilon: size of the shift, in units of ``z`` (or of its root mean square, see ``relative``). At least 0;
            with 0 a zero denominator stays zero and the quotient is defined as 0 (LRP-0).
        relative: ``None`` for an absolute epsilon; ``"sample"`` multiplies it by the root mean square of each
            sample of ``z``; ``"tensor"`` by that of the whole tensor.
        signed: add with the sign of ``z``. ``False`` always adds ``+epsilon`` (Montavon's tutorial does, together
            with ``relative="tensor"``).
        clip: instead of adding, keep ``|z| >= epsilon`` and the sign.
        in_limit: epsilon is 0 in the limit: see :meth:`limit`.

    Example::

        assert fastlrp.Stabilizer(0.5)(torch.tensor([[2.0, -2.0, 0.0]])).tolist() == [[2.5, -2.5, 0.5]]

    Source: Bach et al. 2015, eq. 58 (absolute); Montavon et al. 2019, section 10.2 (relative).

    Raises:
        ValueError: if ``epsilon`` is negative or not finite, ``relative`` is not one of the three, or ``in_limit`` is
            given with an epsilon.
    """

    epsilon: float = 1e-6
    relative: Literal["sample", "tensor"] | None = None
    signed: bool = True
    clip: bool = False
    in_limit: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.epsilon < math.inf:
            raise ValueError(f"Stabilizer: epsilon must be a finite number >= 0, got {self.epsilon!r}")
        if self.relative not in (None, "sample", "tensor"):
            raise ValueError(f"Stabilizer: relative must be None, 'sample' or 'tensor', got {self.relative!r}")
        if self.in_limit and (self.epsilon != 0 or self.clip):
            raise ValueError(
                f"Stabilizer: in_limit means epsilon 0 in the limit, got epsilon={self.epsilon!r}, clip={self.clip}: "
                "use Stabilizer.limit()"
            )

    def __repr__(self) -> str:
        """``Stabilizer.limit()``, or the other fields by name."""
        shown = [f"{field.name}={getattr(self, field.name)!r}" for field in fields(self) if field.name != "in_limit"]
        return "Stabilizer.limit()" if self.in_limit else f"{type(self).__name__}({', '.join(shown)})"

    @staticmethod
    def limit() -> Stabilizer:
        """Epsilon 0 in the limit: relevance per unit of ``z``, ``c = R / z``, goes through undivided.

        ``Stabilizer(0.0)`` divides ``R`` by ``z`` and defines 0 / 0 as 0. Where relevance arrives as ``z c`` the
        quotient is ``c`` for every ``z``, also in the limit of ``z`` to 0. Then nothing is divided, cached or
        multiplied: what is computed is gradient times input, as implementations of AttnLRP do. Where relevance arrives
        in any other form the quotient is that of ``Stabilizer(0.0)``.
        """
        return Stabilizer(0.0, in_limit=True)

    @staticmethod
    def ensure(value: float | Stabilizer) -> Stabilizer:
        """A number becomes an absolute signed stabilizer; a stabilizer stays what it is."""
        if isinstance(value, Stabilizer):
            return value
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return Stabilizer(float(value))
        raise TypeError(f"expected a number or a Stabilizer, got {type(value).__name__}")

    @property
    def is_absolute(self) -> bool:
        """True for ``z + epsilon * sgn(z)`` with one epsilon for all: the form that fused kernels take."""
        return self.relative is None and self.signed and not self.clip

    def __call__(self, z: Tensor) -> Tensor:
        """Stabilized denominator, same shape as ``z`` (first axis: samples)."""
        epsilon: Tensor | float = float(self.epsilon)
        if self.relative is not None:
            axes = list(range(1 if self.relative == "sample" else 0, z.dim()))
            mean = z.square().mean(dim=axes, keepdim=True) if axes else z.square()
            epsilon = self.epsilon * mean.sqrt()
        sign = torch.where(z < 0, -1.0, 1.0).to(z.dtype)
        if self.clip:
            size = z.abs()
            return sign * (size.clamp(min=epsilon) if isinstance(epsilon, float) else torch.maximum(size, epsilon))
        return z + (epsilon * sign if self.signed else epsilon)

    def reciprocal(self, z: Tensor) -> Tensor:
        """``1 / st(z)``, and 0 where ``st(z)`` is exactly 0: relevance there has nobody to go to."""
        denominator = self(z)
        if self.epsilon > 0 and self.signed and self.relative is None:
            return denominator.reciprocal()
        return torch.where(denominator == 0, 0.0, denominator.reciprocal())

    def mirrored(self) -> Stabilizer:
        """The stabilizer ``z -> -st(-z)``: for a negative part that is computed as the positive part of ``-W``."""
        return self if self.signed else _Mirrored(**vars(self))


class _Mirrored(Stabilizer):
    def __call__(self, z: Tensor) -> Tensor:
        return -super().__call__(-z)


class LimitAt(Stabilizer):
    """:meth:`Stabilizer.limit` with the quotient ``R / z`` known, so that it has a value where ``z`` is 0.

    For :mod:`fastlrp.verify`: there ``R = z c`` is 0 and does not tell ``c``, which goes on all the same.

    Attributes:
        quotient: ``c``, ``(B, K, ...)`` as R.
    """

    quotient: Tensor

    def __init__(self, quotient: Tensor) -> None:
        super().__init__(0.0, in_limit=True)
        object.__setattr__(self, "quotient", quotient)
