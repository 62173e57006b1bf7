"""``torch``: composed PyTorch operations, any device, every floating-point dtype."""

from __future__ import annotations

from fastlrp.backends.backend import Backend


class Torch(Backend):
    name = "torch"
    package = "fastlrp.aten"
    automatic = None
