"""The plans of one model under one composite: captured when they are first needed, kept, renewed when it changes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fastlrp.capture.canonizers import canonize
from fastlrp.capture.chosen import Output
from fastlrp.capture.export import EXPORTING, Captured, capture
from fastlrp.capture.graph import Graph
from fastlrp.capture.training import with_mode
from fastlrp.capture.translate.mask_sizes import count_of
from fastlrp.capture.watch import Watch
from fastlrp.composites import Composite
from fastlrp.errors import CaptureError
from fastlrp.plan.paths.choose import Chooser
from fastlrp.plan.plan import Plan
from fastlrp.precision import Precision, products_of, switches
from fastlrp.run.accept import accepted
from fastlrp.run.hints import warn_of_backward_hooks, warn_of_unread, with_hint
from fastlrp.run.inputs import Inputs, checked, not_defined, refuse_autocast
from fastlrp.run.prepared import Prepared

Trace = Callable[[nn.Module, Inputs, Output, Watch], Captured]
"""From a model, an input and the output to explain to the captured model; tells the watch what a pass writes."""


def trace(model: nn.Module, inputs: Inputs, output: Output, watch: Watch) -> Captured:
    """The model as torch.export sees it."""
    return capture(model, inputs.args, inputs.kwargs, output, watch.code.written)


class Plans:
    """Captured models with their plans, by the input's shape.

    Args:
        model, composite, backend, output: see :class:`fastlrp.Explainer`.
        chooser: dense or sparse, layer by layer.
        trace: captures the model. canonize: brings its graph into the form that the rules see. prepared: makes plans.
        precision: what their products read. saves_memory: whether no weight is kept in a form larger than its own.

    Attributes:
        refreshed: how often :meth:`refresh` was called.
        kept: how many plans are remembered.
    """

    kept = 8

    def __init__(
        self,
        model: nn.Module,
        composite: Composite,
        backend: str,
        output: Output,
        chooser: Chooser,
        trace: Trace = trace,
        canonize: Callable[[Graph], object] = canonize,
        prepared: type[Prepared] = Prepared,
        precision: Precision = "auto",
        saves_memory: bool = False,
    ) -> None:
        self._precision, self._saves_memory = precision, saves_memory
        self.model, self.composite, self.refreshed = model, composite, 0
        self._backend, self._output, self._chooser = backend, output, chooser
        self._trace, self._canonize, self._make = trace, canonize, prepared
        self._kept: OrderedDict[tuple[Any, ...], Prepared] = OrderedDict()
        self._watch: Watch | None = None
        self._lock = threading.RLock()

    def inputs(self, x: Any) -> Inputs:
        """``x`` taken apart, if the model takes it; see :func:`fastlrp.run.inputs.checked` for the errors."""
        watch = self._watch
        home = self._home() if watch is None else watch.home
        return checked(x if isinstance(x, Tensor) else accepted(x, home), home, self._home)

    def _home(self) -> Tensor | None:
        with EXPORTING:  # Which swaps the parameters for tensors without data while it traces.
            return next((p for p in self.model.parameters() if p.is_floating_point()), None)

    def of(self, inputs: Inputs) -> Prepared:
        """The plan for inputs of this form, up to date with the model; captured now if it is the first of its form.

        Raises:
            RuntimeError: within ``torch.autocast``.
        """
        refuse_autocast(inputs.tensors[0].device)
        with self._lock:
            if self._watch is not None and self._watch.restructured():
                with EXPORTING:  # Another thread's export of this model looks like a change, until it ends.
                    restructured = self._watch.restructured()
                if restructured:
                    self._kept.clear()
                    self._watch = None
            # PyTorch's switches decide where nothing else does, and may change between calls. So may the dtype that a
            # model's code has where it names none.
            key = (*inputs.key(), torch.get_default_dtype(), switches() if self._precision == "auto" else None)
            found = self._kept.get(key) or self._kept.get((*key, inputs.tensors[0].shape[0]))
            if found is None:
                return self._capture(inputs, key)
            values = found.watch.values()
            if values != found.values:
                if found.watch.reshaped():
                    self._kept.clear()
                    self._watch = None
                    return self._capture(inputs, key)
                if any(count_of(mask) != count for mask, count in found.plan.graph.counted):
                    return self._capture(inputs, key)
                found.renew(values)
            return found

    def _capture(self, inputs: Inputs, key: tuple[Any, ...]) -> Prepared:
        with EXPORTING:
            self._refuse_lazy()
            watch = self._watch or Watch(self.model)
            try:
                captured = self._captured(inputs, watch)
            except CaptureError as error:
                raise with_hint(error, self.model, inputs) if error.of_input else error from error.__cause__
            self._canonize(captured.graph)
            warn_of_unread(self.model, inputs, captured.graph)
        dtype = self._dtype(inputs, captured.graph.output.dtype)
        how = (self._backend, inputs.tensors[0].device, dtype, self._chooser)
        try:
            products = products_of(self._precision, *how[:-1])
            # The parts of a filtered weight take four times its memory.
            products = replace(products, filtered=products.filtered and not self._saves_memory)
            found = self._make(captured, self.composite, *how, watch, products)
            warn_of_backward_hooks(self.model, found.plan.rules.values())
        except CaptureError as error:
            lacks_batch = captured.graph.output.shape is not None and len(captured.graph.output.shape) < 2
            raise with_hint(error, self.model, inputs) if lacks_batch else error from error.__cause__
        if captured.fixed_batch is not None:
            key = (*key, captured.fixed_batch)
        self._kept[key] = found
        while len(self._kept) > self.kept:
            self._kept.popitem(last=False)
        self._watch = watch
        return found

    def _captured(self, inputs: Inputs, watch: Watch) -> Captured:
        """The traced model.

        Raises:
            TypeError: for integers that it computes with, or does not take at all.
        """
        try:
            captured = self._trace(self.model, inputs, self._output, watch)
        except CaptureError as error:
            error.args = (with_mode(str(error), self.model),)
            looks_up = any(isinstance(m, (nn.Embedding, nn.EmbeddingBag)) for m in self.model.modules())
            if inputs.has_floats or looks_up or not error.of_input:
                raise
            raise not_defined(inputs) from error
        if not inputs.has_floats and not any(v.gets_relevance for v in captured.graph.inputs):
            raise not_defined(inputs)
        return captured

    def _dtype(self, inputs: Inputs, of_output: torch.dtype | None) -> torch.dtype:
        """In which relevance is computed: that of the input; for ids that of the model."""
        home = next((t for t in inputs.tensors if t.is_floating_point()), None)
        home = self._home() if home is None else home
        return home.dtype if home is not None else of_output or torch.get_default_dtype()

    def _refuse_lazy(self) -> None:
        for name, tensor in (*self.model.named_parameters(), *self.model.named_buffers()):
            if is_lazy(tensor):
                raise CaptureError(
                    f"'{name}' of the model has no shape yet, as lazy modules begin (nn.LazyLinear, …): call the model "
                    "once, model(x), which gives it one"
                )

    def refresh(self) -> None:
        """Forget what was captured."""
        with self._lock:
            self._kept.clear()
            self._watch = None
            self.refreshed += 1

    @property
    def latest(self) -> Plan | None:
        """The plan of the latest capture."""
        return next(reversed(self._kept.values())).plan if self._kept else None
