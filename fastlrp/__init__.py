"""fastlrp: layer-wise relevance propagation for unmodified PyTorch models, many targets at once."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fastlrp import composites, groups, rules
from fastlrp.composites import Composite
from fastlrp.contrasts import contrastive, top_classes
from fastlrp.errors import BackendError, CaptureError, NotFiniteError, UnsupportedOperationError
from fastlrp.explainer import Explainer, explain
from fastlrp.graph_explainer import GraphExplainer
from fastlrp.graph_parts import Edges, all_walks, edge_relevance, walk_relevance
from fastlrp.layerwise import lrp
from fastlrp.parts import generated, similarity, tokens_by_layers
from fastlrp.plan.assign import register_rule
from fastlrp.run.record import ForwardRecord
from fastlrp.stabilizer import Stabilizer
from fastlrp.targets.spellings import each, next_tokens

if TYPE_CHECKING:
    from fastlrp import compat, frequencies, functional, info, io, nn, outputs, report, tune, viz

__version__ = "0.1.0"

_LOADED_ON_USE = ("compat", "frequencies", "functional", "info", "io", "nn", "outputs", "report", "tune", "viz")
"""Packages that are loaded when they are first named, as in ``fastlrp.io``, and not by ``import fastlrp``."""

__all__ = [
    "BackendError",
    "CaptureError",
    "Composite",
    "Edges",
    "Explainer",
    "ForwardRecord",
    "GraphExplainer",
    "NotFiniteError",
    "Stabilizer",
    "UnsupportedOperationError",
    "all_walks",
    "compat",
    "composites",
    "contrastive",
    "each",
    "edge_relevance",
    "explain",
    "frequencies",
    "functional",
    "generated",
    "groups",
    "info",
    "io",
    "lrp",
    "next_tokens",
    "nn",
    "outputs",
    "register_rule",
    "report",
    "rules",
    "similarity",
    "tokens_by_layers",
    "top_classes",
    "tune",
    "viz",
    "walk_relevance",
]


def __getattr__(name: str) -> Any:
    if name in _LOADED_ON_USE:
        return importlib.import_module(f"fastlrp.{name}")
    raise AttributeError(f"module 'fastlrp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
