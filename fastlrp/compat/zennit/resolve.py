"""Which of Zennit's hooks stands on which module: a composite's own ``module_map``, on the canonized model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from fastlrp.compat.zennit.recognise import is_hook
from fastlrp.compat.zennit.twin import Seen, twin


@dataclass(eq=False)
class Resolved:
    """A copy of the model to explain, and the hooks on it.

    Attributes:
        model: the copy, canonized.
        hooks: module path to template.
        private: whether the copy has parameters of its own: then they never change.
        canonizers: what was applied to the copy, kept alive with it.
    """

    model: nn.Module
    hooks: dict[str, Any]
    private: bool
    canonizers: list[Any]


def outline(model: nn.Module, composite: Any) -> dict[str, Any]:
    """Hook templates by module path, as Zennit's ``Composite.register`` walks a model: parents before children.

    Raises:
        TypeError: if the ``module_map`` returns something that is no hook.
    """
    context: dict[Any, Any] = {}
    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        template = composite.module_map(context, path, module)
        if template is None:
            continue
        if not is_hook(template):
            raise TypeError(
                f"the composite's module_map returned {template!r} for module {path!r}: expected a zennit.core.Hook or "
                "None"
            )
        found[path] = template
    return found


def resolve(model: nn.Module, composite: Any) -> Resolved:
    """The composite on the model.

    With canonizers the hooks are looked up as Zennit does, on the model itself while its canonizers are applied to it;
    they are undone at once. What is explained is a copy to which they are applied for good.

    Raises:
        RuntimeError: for canonizers that make something else of a copy, or that do not undo what they do.
    """
    if not composite.canonizers:
        return Resolved(twin(model, share=True), outline(model, composite), False, [])
    before = Seen(model, values=True)
    copied = twin(model, share=False)
    applied: list[Any] = []
    try:
        _apply(composite, model, applied)
        hooks, expected = outline(model, composite), _types(model)
    finally:
        for canonizer in applied:
            canonizer.remove()
    if before.changed(model):
        raise RuntimeError(_message("they do not undo all that they do"))
    kept: list[Any] = []
    _apply(composite, copied, kept)
    if before.changed(model):
        for canonizer in kept:
            canonizer.remove()
        raise RuntimeError(_message("they changed the model although they were applied to a copy of it"))
    if _types(copied) != expected:
        different = {path for path, _ in set(expected.items()) ^ set(_types(copied).items())}
        raise RuntimeError(
            f"the composite's canonizers ({_names(composite)}) make something else of a copy of the model, at "
            f"{', '.join(sorted(different)[:4])}: they must find modules by name or type, not by identity"
        )
    return Resolved(copied, hooks, True, kept)


def _apply(composite: Any, model: nn.Module, applied: list[Any]) -> None:
    for canonizer in composite.canonizers:
        applied += canonizer.apply(model)


def _types(model: nn.Module) -> dict[str, type]:
    return {path: type(module) for path, module in model.named_modules()}


def _names(composite: Any) -> str:
    return ", ".join(type(canonizer).__name__ for canonizer in composite.canonizers)


def _message(reason: str) -> str:
    return (
        f"the model is not what it was after its canonizers were applied and removed: {reason}. A canonizer needs a "
        "remove() that restores everything, and an apply(model) that touches nothing but that model"
    )
