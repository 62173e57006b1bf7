"""Settings of models of ``transformers`` with which they cannot be captured, and those with which they can."""

from __future__ import annotations

from torch import nn

_CAPTURED = ("sdpa", "eager")
"""Attention implementations that are ordinary operations."""


def ways_out(model: nn.Module) -> str:
    """What to set in the place of an implementation that branches on data; empty if there is none."""
    found: list[str] = []
    for module in model.modules():
        config = getattr(module, "config", None)
        attention = getattr(config, "_attn_implementation", None)
        if isinstance(attention, str) and attention not in _CAPTURED:
            found.append(f"attention implemented by '{attention}': call model.set_attn_implementation('sdpa')")
        if getattr(config, "_experts_implementation", None) == "eager":
            found.append("experts in a loop over data: call model.set_experts_implementation('grouped_mm')")
        elif isinstance(getattr(module, "experts", None), nn.Module) and not hasattr(config, "_experts_implementation"):
            found.append(
                "experts in a loop over data: with transformers 5 call model.set_experts_implementation('grouped_mm')"
            )
    return f" The model has {'; and '.join(dict.fromkeys(found))}." if found else ""
