"""Parts of a register: a range along one axis, and rooms for several results in the memory of one whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Window:
    """Where a step writes its operand into zeros: from ``start`` on along one axis of ``(B, K, …)``.

    Attributes:
        axis: with batch and targets counted. length: of the operand. whole: of the result. drops: whether the operand
            lacks the axis. step: between its entries in the result.
    """

    axis: int
    start: int
    length: int
    whole: int
    drops: bool = False
    step: int = 1

    def room(self, whole: Tensor) -> Tensor:
        """What the operand is in memory of the result."""
        if self.drops:
            return whole.select(self.axis, self.start)
        if self.step == 1:
            return whole.narrow(self.axis, self.start, self.length)
        return whole[(slice(None),) * self.axis + (slice(self.start, self.end, self.step),)]

    @property
    def is_few(self) -> bool:
        """Whether most positions of the result are zero."""
        return self.axis == 2 and 2 * self.length <= self.whole

    @property
    def end(self) -> int:
        """The place behind the last entry."""
        return self.start + (self.length - 1) * self.step + 1


Rooms = Callable[[Tensor], tuple[Tensor, Sequence[Tensor | None]]]
"""New memory like a register ``(B, K, …)``: the whole, and in it the room for each result of a step, None for those
that are no part of it. The step multiplies each result with a number of its own, fills all rooms and returns the whole;
behind it, in a tuple, the results without a room, if there are any."""
