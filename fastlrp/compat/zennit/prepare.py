"""Explainers of models under composites, kept for the next call, also of scripts that make everything anew."""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass
from typing import Any

from torch import nn

from fastlrp import composites
from fastlrp.capture.export import EXPORTING
from fastlrp.capture.watch import written_by_a_copy
from fastlrp.compat.zennit import notices, resolve
from fastlrp.compat.zennit.explainer import HookExplainer
from fastlrp.compat.zennit.fingerprint import fingerprint
from fastlrp.compat.zennit.recognise import is_composite, is_hook
from fastlrp.compat.zennit.resolve import Resolved
from fastlrp.compat.zennit.twin import Seen, refuse_hooks, twin, zennit_hooks
from fastlrp.composites import Composite
from fastlrp.explainer import Explainer

_KEPT = 4
"""Explainers kept per model."""

_LOCK = threading.RLock()


@dataclass(eq=False)
class Prepared:
    """An explainer, and what it was made for."""

    explainer: Explainer
    keys: tuple[Any, ...]
    seen: Seen


# Of each model's explainers none refers to the model itself: when it goes, they go.
_PREPARED: weakref.WeakKeyDictionary[nn.Module, list[Prepared]] = weakref.WeakKeyDictionary()


def prepare(model: nn.Module, composite: Any) -> Prepared:
    """The explainer of this model under this composite, made now or kept from an earlier call.

    Args:
        composite: one of Zennit's, one of fastlrp's or its name, or None for the plain gradient (or for the hooks of
            Zennit that stand on the model already).

    Raises:
        TypeError, ValueError: for a composite that is none. RuntimeError: for hooks of the user's on the model.
    """
    with _LOCK:
        registered = refuse_hooks(model)
        if registered and not (composite is None or (is_composite(composite) and composite.handles)):
            raise RuntimeError(
                "the model has hooks of another composite of Zennit's: call composite.remove(), or leave its context, "
                "before you explain the model under this one"
            )
        key = _key(model, composite, registered)
        kept = _PREPARED.setdefault(model, [])
        for found in kept:
            if key in found.keys:
                kept.remove(found)
                written_by_a_copy(model, found.explainer.model)
                if not found.seen.changed(model):
                    kept.append(found)
                    return found
                break
        explainer, seen = _make(model, composite, registered)
        # A canonizer may keep what it was applied to, and so look different from now on.
        made = Prepared(explainer, (key, _key(model, composite, registered)), seen)
        kept.append(made)
        del kept[:-_KEPT]
        return made


def forget(model: nn.Module) -> None:
    """Drop the explainers of this model."""
    with _LOCK:
        _PREPARED.pop(model, None)


def check_composite(composite: Any) -> None:
    """Raise TypeError or ValueError for what no attributor takes."""
    if composite is None or is_composite(composite):
        return
    if isinstance(composite, type):
        raise TypeError(f"composite must be an instance: {composite.__name__}(), not the class itself")
    if is_hook(composite):
        raise TypeError(
            f"composite is a rule, {type(composite).__name__}: put it into a composite, for example "
            "LayerMapComposite([(torch.nn.Linear, rule)])"
        )
    if not isinstance(composite, (str, Composite)):
        raise TypeError(
            "composite must be a composite of Zennit's, a fastlrp.Composite or its name, or None for the gradient; "
            f"got {type(composite).__name__}"
        )
    composites.resolve(composite)


def _key(model: nn.Module, composite: Any, registered: bool) -> Any:
    if registered:
        return ("registered", fingerprint(zennit_hooks(model)))
    if not is_composite(composite):
        return ("fastlrp", fingerprint(composite))
    try:
        hooks = fingerprint(resolve.outline(model, composite))
    except Exception:  # A module_map may count on what the canonizers make: then the composite itself is the key.
        if not composite.canonizers:
            raise
        hooks = weakref.ref(composite)
    return ("zennit", hooks, fingerprint(composite.canonizers))


def _make(model: nn.Module, composite: Any, registered: bool) -> tuple[Explainer, Seen]:
    notices.side_effects(model)
    with EXPORTING:  # While another thread exports this model its parameters are tensors without data.
        if registered:
            found = Resolved(twin(model, share=False), zennit_hooks(model), True)
            name = "Zennit's hooks"
        elif is_composite(composite):
            found, name = resolve.resolve(model, composite), f"Zennit's {type(composite).__name__}"
        else:
            explainer = Explainer(twin(model, share=True), "gradient" if composite is None else composite)
            return explainer, Seen(model, values=False, held=True)
        explainer = HookExplainer(found, name)
        notices.held_modules(found.hooks, model, explainer.recognised)
        return explainer, Seen(model, values=found.private, held=True)
