"""The gradient, and the two clipped gradients."""

from __future__ import annotations

from dataclasses import dataclass

from fastlrp.rules.rule import Rule


@dataclass(frozen=True)
class Gradient(Rule):
    """The layer's own gradient: what flows is ``dy/dx``, not relevance.

    Example::

        gradients = record.under(composites.uniform(rules.Gradient())).relevance("top1", initial="one")
    """

    @property
    def grows(self) -> str:
        return (
            "What flows is the layer's own derivative, which is infinite or undefined at some inputs, as that of a "
            "root is at 0, or too large for the dtype: another rule there, numbers away from that place, or a float64 "
            "copy of the model (copy.deepcopy(model).double(), x.double())"
        )


@dataclass(frozen=True)
class Deconvnet(Rule):
    """At a ReLU: what flows is clipped, ``R_in = max(R, 0)``. Source: Zeiler and Fergus 2014.

    Example::

        mine = composites.gradient().with_entries((nn.ReLU, rules.Deconvnet()))
    """

    linear_in_relevance = False


@dataclass(frozen=True)
class GuidedBackprop(Rule):
    """At a ReLU: gradient and clipping, ``R_in = 1[x > 0] max(R, 0)``. Source: Springenberg et al. 2015.

    Example::

        mine = composites.gradient().with_entries((nn.ReLU, rules.GuidedBackprop()))
    """

    linear_in_relevance = False


GRADIENTS = (Gradient, Deconvnet, GuidedBackprop)
"""The rules that take derivatives through every layer: they differ at ReLUs alone."""
