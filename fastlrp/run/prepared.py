"""A captured model with its plans: that of the explainer's composite, and those of others that were asked for."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

import torch

from fastlrp.capture.export import Captured
from fastlrp.capture.watch import Watch
from fastlrp.composites import Composite
from fastlrp.plan.paths.choose import Chooser
from fastlrp.plan.plan import Plan
from fastlrp.precision import FULL, Products
from fastlrp.run.finite import check_numbers

_KEPT_OTHERS = 16


class Prepared:
    """One captured model, ready for its inputs' shape.

    Attributes:
        plan: of the explainer's own composite. captured: graph and structure. watch: notices changed weights.
        values: what the watch said of the weights when the plan read them: :meth:`fastlrp.capture.watch.Watch.values`.
    """

    def __init__(
        self,
        captured: Captured,
        composite: Composite,
        backend: str,
        device: torch.device,
        dtype: torch.dtype,
        chooser: Chooser,
        watch: Watch,
        products: Products = FULL,
    ) -> None:
        self._products = products
        self.captured, self.watch, self.values = captured, watch, 0
        self._composite, self._chooser, self._how = composite, chooser, (backend, device, dtype)
        self._lock = threading.Lock()
        self.renew(watch.values())

    def renew(self, values: int) -> None:
        """Read the weights again: the watch has seen other ones."""
        self._shared: dict[Any, Any] = {}
        self._others: OrderedDict[Composite, Plan] = OrderedDict()
        self.plan = self._checked(self._composite)
        self.values = values  # Last: who reads both at the same time in another thread takes no old plan for new.

    def under(self, composite: Composite) -> Plan:
        """The plan of another composite; the latest few are remembered by the composite object."""
        if composite is self._composite:
            return self.plan
        with self._lock:
            if composite not in self._others:
                self._others[composite] = self._checked(composite)
            self._others.move_to_end(composite)
            while len(self._others) > _KEPT_OTHERS:
                self._others.popitem(last=False)
            return self._others[composite]

    def _checked(self, composite: Composite) -> Plan:
        plan = self._make(composite)
        check_numbers(plan.rules, plan.dtype)
        return plan

    def _make(self, composite: Composite) -> Plan:
        return Plan(self.captured.graph, composite, *self._how, self._chooser, self._shared, self._products)
