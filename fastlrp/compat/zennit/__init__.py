"""Zennit's attributors on fastlrp: ``from fastlrp.compat.zennit import Gradient``, not ``from zennit.attribution``.

Zennit's own composites and canonizers are taken as they are and translated rule by rule, so that the numbers are
Zennit's; fastlrp's composites and the names of its presets are taken too. Zennit need not be installed for those.
See ``docs/from_zennit.md``.
"""

from typing import Any

from fastlrp.compat.zennit.attribution import Gradient, context
from fastlrp.compat.zennit.averages import IntegratedGradients, SmoothGrad

__all__ = ["Gradient", "IntegratedGradients", "SmoothGrad", "context"]

_ELSEWHERE = {
    "Occlusion": "it computes no gradient, so there is nothing to make faster: import it from zennit.attribution",
    "occlude_independent": "import it from zennit.attribution, with Occlusion",
    "Attributor": "subclass Gradient and call self.grad(input, attr_output_fn) in forward, or keep Zennit's",
}


def __getattr__(name: str) -> Any:
    if name in _ELSEWHERE:
        raise ImportError(f"fastlrp.compat.zennit has no {name}: {_ELSEWHERE[name]}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
