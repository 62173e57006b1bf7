"""In which modules of the model an operation of the exported program stands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

WRAPPED = "model"
"""Name under which capture's wrapper holds the user's model."""

CHOOSER = "chosen_output"
"""Name under which it holds the function that the user gave as the output."""

OUTPUT = "(output)"
"""Path of the operations of that function."""


def innermost(fx: torch.fx.Node) -> str:
    """Path of the innermost module that the operation stands in; empty for the model itself, :data:`OUTPUT` for a
    function of its output."""
    every = list((fx.meta.get("nn_module_stack") or {}).values())
    if every and every[-1][0].split("@")[0] == CHOOSER:
        return OUTPUT
    stack = _module_stack(fx)
    return _path(list(stack.values())[-1][0]) if stack else ""


def calls_around(fx: torch.fx.Node) -> Iterator[str]:
    """The calls that the operation stands in, outermost first: ``path``, and ``path@n`` from a module's second call on.

    The model itself is left out.
    """
    for key, (path, _) in _module_stack(fx).items():
        _, at, call = key.rpartition("@")
        name = _path(path)
        if name:
            yield f"{name}@{call}" if at and call.isdigit() else name


def _module_stack(fx: torch.fx.Node) -> dict[str, tuple[str, Any]]:
    """The model's own modules that the node stands in, outermost first; nodes that torch.export adds name others."""
    stack = fx.meta.get("nn_module_stack") or {}
    return {key: entry for key, entry in stack.items() if entry[0].split("@")[0].split(".")[0] in ("", WRAPPED)}


def _path(path: str) -> str:
    return path.split("@")[0].removeprefix(WRAPPED).removeprefix(".")
