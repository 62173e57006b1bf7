"""The libraries that do the work, loaded when they are first needed."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

_PACKAGES = {"PIL": "pillow"}


def need(module: str) -> ModuleType:
    """The module.

    Raises:
        ImportError: if it is not installed; says what to install.
    """
    try:
        return import_module(module)
    except ImportError as error:
        top = module.partition(".")[0]
        package = _PACKAGES.get(top, top)
        raise ImportError(f'fastlrp.viz needs {package} here: pip install "fastlrp[viz]"') from error
