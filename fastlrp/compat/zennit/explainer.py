"""fastlrp's explainer for a model under Zennit's hooks: rules by module, the plain gradient everywhere else."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from fastlrp import rules
from fastlrp.capture.canonizers import split_same_padding
from fastlrp.capture.graph import Graph
from fastlrp.compat.zennit.choose import Hooked, scaled
from fastlrp.compat.zennit.passes import Modules
from fastlrp.compat.zennit.resolve import Resolved
from fastlrp.composites import Composite, Layer
from fastlrp.explainer import Explainer
from fastlrp.rules import Rule
from fastlrp.run.plans import Plans


class HookComposite(Composite):
    """The rule of each hooked module; :class:`~fastlrp.rules.Gradient` for everything else."""

    hooks: dict[str, Hooked]
    factors: dict[str, float]

    def __init__(self, model: nn.Module, templates: dict[str, Any], name: str) -> None:
        super().__init__((), name=name)
        hooks = {path: Hooked.of(path, model.get_submodule(path), t) for path, t in templates.items()}
        object.__setattr__(self, "hooks", hooks)
        object.__setattr__(self, "factors", {})

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def rule_for(self, layer: Layer) -> Rule:
        """The hook's rule for an operation that stands for its module."""
        hooked = self.hooks.get(layer.path)
        if hooked is None:
            return rules.Gradient()
        rule = hooked.rule(layer.kind, layer.operation)
        factor = self.factors.get(layer.path)
        return rule if factor is None else scaled(rule, factor) or rule


class HookExplainer(Explainer):
    """An :class:`~fastlrp.Explainer` that leaves batch norms where they are and takes modules as a whole.

    Args:
        resolved: a copy of the user's model and Zennit's hooks on it.
        name: of the composite, for people.
    """

    def __init__(self, resolved: Resolved, name: str) -> None:
        composite = HookComposite(resolved.model, resolved.hooks, name)

        def canonize(graph: Graph) -> None:
            modules = Modules(graph, resolved.model, composite.hooks)
            split_same_padding(graph)
            modules.settle()
            modules.sums_of_stacks()
            if resolved.private:
                composite.factors.update(modules.merged_batch_norms())
            graph.drop_dead()

        self._plans_of = partial(Plans, canonize=canonize)
        super().__init__(resolved.model, composite)

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError(
            "an explainer made from Zennit's hooks can be neither pickled nor deep-copied: it belongs to the model "
            "that they are on. Send the model and make the attributor there"
        )

    @property
    def recognised(self) -> list[str]:
        """Paths of the modules whose hooks are rules of Zennit's."""
        composite = self.composite
        assert isinstance(composite, HookComposite)
        return [path for path, hooked in composite.hooks.items() if hooked.recognised is not None]
