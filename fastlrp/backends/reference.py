"""``reference``: the definition, float64 inside, slow. Never chosen automatically."""

from __future__ import annotations

from fastlrp.backends.backend import Backend


class Reference(Backend):
    name = "reference"
    package = "fastlrp.reference"
