"""Which of Zennit's hooks stands on which module: a composite's own ``module_map``, on the canonized model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from fastlrp.compat.zennit.effective import Registered
from fastlrp.compat.zennit.recognise import is_hook
from fastlrp.compat.zennit.twin import Seen, twin


@dataclass(eq=False)
class Resolved:
    """A copy of the model to explain, and the hooks on it.

    Attributes:
        model: the copy, canonized.
        hooks: module path to template.
        private: whether the copy has parameters of its own: then they never change.
    """

    model: nn.Module
    hooks: dict[str, Any]
    private: bool


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

    Canonizers are applied to the model itself, as Zennit does, so that they find modules by identity, too. What is
    explained is a copy of the canonized model; then they are undone.

    Raises:
        RuntimeError: for canonizers that do not undo what they do.
    """
    if not composite.canonizers:
        return Resolved(twin(model, share=True), outline(model, composite), False)
    before, registered = Seen(model, values=True), Registered(model)
    applied: list[Any] = []
    try:
        for canonizer in composite.canonizers:
            applied += canonizer.apply(model)
        hooks, copied = outline(model, composite), twin(model, share=False)
    finally:
        for canonizer in applied:
            canonizer.remove()
        registered.restore()
    if before.changed(model):
        names = ", ".join(type(canonizer).__name__ for canonizer in composite.canonizers)
        raise RuntimeError(
            f"the model is not what it was after its canonizers ({names}) were applied and removed: they do not undo "
            "all that they do. A canonizer needs a remove() that restores everything"
        )
    return Resolved(copied, hooks, True)
