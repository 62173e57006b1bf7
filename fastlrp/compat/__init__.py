"""Drop-in replacements for other libraries: change the import, keep the script."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["captum", "zennit"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return importlib.import_module(f"fastlrp.compat.{name}")
    raise AttributeError(f"module 'fastlrp.compat' has no attribute {name!r}: there are {', '.join(__all__)}")


def __dir__() -> list[str]:
    return list(__all__)
