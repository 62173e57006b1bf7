"""Settings of models of ``transformers`` with which they cannot be captured, and those with which they can."""

from __future__ import annotations

from torch import nn

_CAPTURED = ("sdpa", "eager")
"""Attention implementations that are ordinary operations."""


def other_attention(model: nn.Module) -> str:
    """What to set where masks have other sizes while a model is traced (BART's decoder with transformers 4.57)."""
    configs = (getattr(module, "config", None) for module in model.modules())
    if not any(getattr(config, "_attn_implementation", None) == "eager" for config in configs):
        return ""
    return " The model has attention implemented by 'eager': call model.set_attn_implementation('sdpa')."


def ways_out(model: nn.Module) -> str:
    """What to set in the place of an implementation that branches on data; empty if there is none."""
    found: list[str] = []
    has_experts = any(isinstance(getattr(module, "experts", None), nn.Module) for module in model.modules())
    for module in model.modules():
        config = getattr(module, "config", None)
        attention = getattr(config, "_attn_implementation", None)
        if isinstance(attention, str) and attention not in _CAPTURED:
            found.append(f"attention implemented by '{attention}': call model.set_attn_implementation('sdpa')")
        if has_experts and config is not None and getattr(config, "_experts_implementation", "eager") == "eager":
            with_5 = "" if hasattr(config, "_experts_implementation") else "with transformers 5 "
            found.append(f"experts in a loop over data: {with_5}call model.set_experts_implementation('grouped_mm')")
    return f" The model has {'; and '.join(dict.fromkeys(found))}." if found else ""
