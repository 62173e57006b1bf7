"""An explainer that captures a model by modules, once for all who ask about it."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from functools import partial
from typing import Any

from torch import Tensor, nn

from fastlrp import rules
from fastlrp.capture.chosen import Output, output_key
from fastlrp.capture.export import Captured, capture
from fastlrp.capture.graph import Node
from fastlrp.capture.watch import Watch, outline
from fastlrp.compat.captum.composite import ModuleRules, TimesInput
from fastlrp.compat.captum.graph import canonize
from fastlrp.compat.captum.layers import HOOKED, named_layers
from fastlrp.compat.captum.second_pass import SecondPass
from fastlrp.composites import Composite
from fastlrp.explainer import Explainer
from fastlrp.plan.builder import Builder
from fastlrp.plan.plan import Plan
from fastlrp.plan.steps import Factor, Flow
from fastlrp.rules import Rule
from fastlrp.run.inputs import Inputs
from fastlrp.run.plans import Plans
from fastlrp.run.prepared import Prepared

_KEPT_GRAPHS = 4

_Graphs = OrderedDict[Any, tuple["Structure", Captured]]
_GRAPHS: weakref.WeakKeyDictionary[nn.Module, _Graphs] = weakref.WeakKeyDictionary()
"""Captures by model: scripts make a new LRP object for every image. They hold its weights, not the model."""

_LOCK = threading.Lock()


class Structure:
    """The modules, parameters and buffers of a model and what they run, without keeping the model alive."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = [(path, weakref.ref(module), module.training) for path, module in _modules(model)]
        self._code = outline(list(model.modules()))
        # As captures hold them: a weak reference would keep torch.utils.swap_tensors from converting a parameter.
        self._tensors = _tensors(model)

    def still_holds(self, model: nn.Module) -> bool:
        """Whether the model still has the same modules, code and tensors, whatever the tensors' values."""
        modules, tensors = list(_modules(model)), _tensors(model)
        if len(modules) != len(self._modules) or len(tensors) != len(self._tensors):
            return False
        for (path, module), (old_path, old, training) in zip(modules, self._modules, strict=True):
            if path != old_path or old() is not module or module.training != training:
                return False
        return self._code == outline(list(model.modules())) and all(
            tensor is old for tensor, old in zip(tensors, self._tensors, strict=True)
        )


def _modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return list(model.named_modules(remove_duplicate=False))


def _tensors(model: nn.Module) -> list[Tensor | None]:
    return [t for module in model.modules() for table in (module._parameters, module._buffers) for t in table.values()]


class ModulePlan(Plan):
    """A plan under :class:`~fastlrp.compat.captum.composite.ModuleRules`."""

    _second: SecondPass | None = None
    treats_samples_alone = False  # Modules are called again, with hooks that may look at the whole batch.

    def lower_node(self, b: Builder, node: Node, rule: Rule | None, flow: Flow) -> None:
        if self._second is None:
            assert isinstance(self.composite, ModuleRules)
            self._second = SecondPass(self.graph, self.composite.asked, self.composite.modules)
        if isinstance(rule, TimesInput):
            b.begin(node, rule)
            b.send(node.inputs[0], Flow(flow.register, Factor(node.inputs[0], b.slot_of(flow.factor))))
        elif not ((rule is None or isinstance(rule, rules.Gradient)) and self._second.lower(b, node, flow)):
            super().lower_node(b, node, rule, flow)


class _Prepared(Prepared):
    def _make(self, composite: Composite) -> Plan:
        return ModulePlan(self.captured.graph, composite, *self._how, self._chooser, self._shared)


def _trace(model: nn.Module, inputs: Inputs, output: Output, watch: Watch) -> Captured:
    """The graph with its modules apart, captured once for all explainers of the model."""
    key = (*inputs.key(), output_key(output))
    batch = inputs.tensors[0].shape[0]
    with _LOCK:
        graphs = _GRAPHS.setdefault(model, OrderedDict())
        structure, found = graphs.get(key) or graphs.get((*key, batch)) or (None, None)
    if structure is not None and found is not None and structure.still_holds(model):
        return found
    found = capture(model, inputs.args, inputs.kwargs, output, watch.code.written)
    canonize(found.graph, dict(named_layers(model)), HOOKED)
    structure = Structure(model)  # Now that it is known which attributes a forward pass writes.
    with _LOCK:
        graphs[key if found.fixed_batch is None else (*key, batch)] = (structure, found)
        while len(graphs) > _KEPT_GRAPHS:
            graphs.popitem(last=False)
    return found


class ByModules(Explainer):
    """An :class:`~fastlrp.explainer.Explainer` whose graph keeps batch norms and modules apart.

    Graphs depend on no rule, so that all explainers of a model share them.
    """

    _plans_of = partial(Plans, trace=_trace, canonize=lambda graph: None, prepared=_Prepared)


def forget_graphs(model: nn.Module) -> None:
    """Capture again at the next call."""
    with _LOCK:
        _GRAPHS.pop(model, None)
