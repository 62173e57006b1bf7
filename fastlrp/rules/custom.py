"""A rule written out by the user."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from fastlrp.rules.rule import Rule

_SHORT = (bool, int, float, str)
"""Attributes of a rule that its text shows: tensors and functions would fill a line of a plan."""


class Custom(Rule):
    """A rule written out: subclass it and define :meth:`propagate`.

    For operations that fastlrp does not know, give an instance to :func:`fastlrp.register_rule`. Set
    ``linear_in_relevance = True`` if what it returns is linear in ``relevance``: then plans with it may propagate a
    basis of a narrow layer instead of each target.

    Example::

        class Halves(rules.Custom):
            def propagate(self, forward, inputs, output, relevance):
                return tuple(relevance / 2 for _ in inputs)

        mine = composites.epsilon_plus().with_entries((composites.operation("hypot"), Halves()))
    """

    linear_in_relevance = False

    def __repr__(self) -> str:
        own = ", ".join(
            f"{name}={value!r}" for name, value in getattr(self, "__dict__", {}).items() if isinstance(value, _SHORT)
        )
        return f"{type(self).__name__}({own})"

    def propagate(
        self, forward: Callable[..., Tensor], inputs: tuple[Tensor, ...], output: Tensor, relevance: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Relevance of the inputs from that of the output.

        Args:
            forward: the operation as a function of its activation inputs (weights are bound in).
            inputs: activations, each ``(B, ...)``: copies, which may be written into.
            output: ``forward(*inputs)``, ``(B, ...)``, a copy as well.
            relevance: ``(B, K, *output.shape[1:])``; it must not be written into, which is an error.

        Returns:
            for each input its relevance ``(B, K, *input.shape[1:])``, or None for none.
        """
        raise NotImplementedError(f"{type(self).__name__} must define propagate(forward, inputs, output, relevance)")
