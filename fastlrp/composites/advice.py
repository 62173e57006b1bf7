"""What was probably meant where something else than a composite, an entry or a preset's name was given."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from typing import Any

from fastlrp.rules import Rule


def unknown_preset(name: str, presets: Collection[str], others: str = "") -> str:
    """The message for a name that no preset has, with the presets that are close to it."""
    as_written_here = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()  # Zennit's EpsilonPlus is epsilon_plus.
    close = [as_written_here] if as_written_here in presets else difflib.get_close_matches(as_written_here, presets, 3)
    hint = f". Did you mean {' or '.join(map(repr, close))}?" if close else ""
    return f"unknown composite {name!r}: expected one of {', '.join(presets)}{others}{hint}"


def no_composite(value: Any, presets: Mapping[str, Any]) -> str:
    """The message for what is neither a name nor a composite."""
    name = getattr(value, "__name__", "")
    hint = ""
    if name and presets.get(name) is value:
        hint = f": call it, {name}(), or give its name, {name!r}"
    elif isinstance(value, Rule) or (isinstance(value, type) and issubclass(value, Rule)):
        rule = f"{name}()" if isinstance(value, type) else str(value)
        hint = f", a rule: fastlrp.composites.uniform({rule}) puts it on all layers with a weight"
    elif isinstance(value, (list, tuple, dict)):
        entries = "tuple(entries.items())" if isinstance(value, dict) else "tuple(entries)"
        hint = f": of entries (matcher, rule), fastlrp.Composite({entries}) | fastlrp.composites.epsilon_plus()"
    elif type(value).__module__.partition(".")[0] == "zennit":
        hint = (
            " of Zennit, which fastlrp.compat.zennit.Gradient takes; here presets have the same names, 'epsilon_plus'"
        )
    return f"composite must be a name or a Composite, got {type(value).__name__}{hint}"


def no_entry(entry: Any) -> str:
    """The message for an entry of a composite that is no pair of a matcher and a rule."""
    hint, rule = "", entry[1] if isinstance(entry, tuple) and len(entry) == 2 else None
    if isinstance(rule, type) and issubclass(rule, Rule):
        hint = f": {rule.__name__} is a class, give a rule, {rule.__name__}(…)"
    elif isinstance(rule, str):
        hint = f": rules are objects of fastlrp.rules, not text, got {rule!r}"
    elif isinstance(entry, Rule) or not isinstance(entry, tuple):
        hint = ": put each matcher and its rule into parentheses of their own, ((nn.Conv2d, rules.Gamma()), …)"
    return f"a composite's entry is (matcher, rule), got {entry!r}{hint}"
