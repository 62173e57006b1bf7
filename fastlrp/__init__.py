"""fastlrp: layer-wise relevance propagation for unmodified PyTorch models, many targets at once."""

from fastlrp import composites, rules
from fastlrp.composites import Composite
from fastlrp.errors import CaptureError, UnsupportedOperationError
from fastlrp.explainer import Explainer, explain
from fastlrp.layerwise import lrp
from fastlrp.plan.plan import register_rule
from fastlrp.run.record import ForwardRecord
from fastlrp.stabilizer import Stabilizer

__version__ = "0.1.0"

__all__ = [
    "CaptureError",
    "Composite",
    "Explainer",
    "ForwardRecord",
    "Stabilizer",
    "UnsupportedOperationError",
    "composites",
    "explain",
    "lrp",
    "register_rule",
    "rules",
]
