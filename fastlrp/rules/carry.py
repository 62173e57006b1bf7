"""Relevance passes unchanged."""

from __future__ import annotations

from dataclasses import dataclass

from fastlrp.rules.rule import Rule


@dataclass(frozen=True)
class Pass(Rule):
    """Relevance passes unchanged: element-wise activations, normalisations, gates."""
