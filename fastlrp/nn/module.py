"""What every thin module can do: a forward pass that is aware of LRP, and LRP."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from fastlrp.composites import Composite
from fastlrp.explainer import Explainer
from fastlrp.nn import variants
from fastlrp.nn.variants import Variant
from fastlrp.run.forward_pass import LrpAware
from fastlrp.run.record import ForwardRecord

_KEPT_COMPOSITES = 16


class _Aware:
    """What a module remembers between forward and lrp: explainers by backend, records of the latest forward pass."""

    def __init__(self) -> None:
        self.x: Tensor | None = None
        self.output: weakref.ref[Tensor] | None = None
        self.keep = False
        self.explainers: dict[str, Explainer] = {}
        self.records: dict[str, ForwardRecord] = {}
        self.views: dict[Any, ForwardRecord] = {}
        self.composites: OrderedDict[Any, Composite] = OrderedDict()

    def forget(self) -> None:
        for record in (*self.views.values(), *self.records.values()):
            record.close()
        self.records.clear()
        self.views.clear()

    def composite(self, key: tuple[tuple[str, Variant], ...]) -> Composite:
        if key not in self.composites:
            self.composites[key] = variants.composite(key)
        self.composites.move_to_end(key)
        while len(self.composites) > _KEPT_COMPOSITES:
            self.composites.popitem(last=False)
        return self.composites[key]


class LRPModule(nn.Module):
    """A module with ``forward(x, lrp_aware)`` and ``lrp(R, lrp_var, param)``.

    Attributes:
        lrp_var, lrp_param: what :meth:`lrp` uses when it is called without; see :meth:`set_lrp_parameters`.
    """

    lrp_var: str | None = None
    lrp_param: float | None = None

    def forward(self, x: Tensor, lrp_aware: bool = False) -> Tensor:
        """The module's output.

        Args:
            x: ``(B, …)``.
            lrp_aware: compute now, and keep, what :meth:`lrp` needs whatever the targets and parameters: repeated
                calls become cheap. The output is then detached from autograd.
        """
        if not lrp_aware:
            output: Tensor = super().forward(x)
            return output
        aware = self._aware()
        aware.forget()
        aware.x, aware.keep = x.detach(), True
        record: Any = self._record("auto")
        aware.output = weakref.ref(record.output)
        return record.output

    def set_lrp_parameters(self, lrp_var: str | None = None, param: float | None = None) -> None:
        """What :meth:`lrp` uses when it is called without: for this module and all modules in it.

        Raises:
            TypeError, ValueError: for an unknown name or a parameter that is missing or out of range.
        """
        Variant.of(lrp_var, param)
        for module in self.modules():
            if isinstance(module, LRPModule):
                module.lrp_var, module.lrp_param = lrp_var, param

    def lrp(self, R: Tensor, lrp_var: str | None = None, param: float | None = None) -> Tensor:
        """Relevance of the latest forward pass's input.

        Args:
            R: relevance of the output, ``(B, *output.shape[1:])``; or of K targets at once, ``(B, K, …)``.
            lrp_var: ``None`` or ``"simple"``, ``"epsilon"`` (``"eps"``), ``"alphabeta"`` (``"alpha"``), ``"flat"``,
                ``"ww"`` (``"w^2"``): for all layers, instead of what :meth:`set_lrp_parameters` gave them. With
                ``"_slow"`` behind it, by the textbook reference.
            param: epsilon, or alpha (beta is ``1 - alpha`` and is added, as in the Toolbox).

        Returns:
            ``(B, *x.shape[1:])``, or ``(B, K, *x.shape[1:])``.

        Raises:
            RuntimeError: before a forward pass, or if weights or input have changed since. TypeError, ValueError: for
            ``R``, ``lrp_var`` or ``param`` that do not fit.
        """
        R, single = self._initial(R)
        given = None if lrp_var is None and param is None else Variant.of(lrp_var, param)
        assigned = self._assigned(given)
        slow = any(variant.slow for _, variant in assigned)
        relevance: Tensor = self._view("reference" if slow else "auto", assigned).relevance(R)
        return relevance[:, 0] if single else relevance

    # What is remembered

    def _aware(self) -> _Aware:
        if "_lrp_aware" not in self.__dict__:
            self.__dict__["_lrp_aware"] = _Aware()
        aware: _Aware = self.__dict__["_lrp_aware"]
        return aware

    def _remember(self, x: Tensor) -> None:
        """An ordinary forward pass: ``lrp`` starts from its input if it is called."""
        if not torch.compiler.is_compiling():
            aware = self._aware()
            aware.forget()
            aware.x, aware.keep = x.detach(), False

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles remember no forward pass."""
        return {key: item for key, item in self.__dict__.items() if key != "_lrp_aware"}

    def _record(self, backend: str) -> ForwardRecord:
        aware = self._aware()
        if aware.x is None:
            raise RuntimeError("lrp comes after a forward pass: call forward(x, lrp_aware=True) first")
        if backend not in aware.explainers:
            aware.explainers[backend] = Explainer(self, aware.composite((("", Variant()),)), backend=backend)
        if backend not in aware.records:
            keep: LrpAware = "sweep" if aware.keep else False
            aware.records[backend] = aware.explainers[backend].forward(aware.x, keep)
        return aware.records[backend]

    def _view(self, backend: str, assigned: tuple[tuple[str, Variant], ...]) -> ForwardRecord:
        aware = self._aware()
        record = self._record(backend)
        key = (backend, assigned)
        if key not in aware.views:
            aware.views[key] = record.under(aware.composite(assigned))
        return aware.views[key]

    def _assigned(self, given: Variant | None) -> tuple[tuple[str, Variant], ...]:
        """Module paths of the layers and their variants."""
        found = []
        for path, module in self.named_modules():
            if isinstance(module, LRPModule) and not any(True for _ in module.children()):
                found.append((path, given or Variant.of(module.lrp_var, module.lrp_param)))
        return tuple(found) or (("", given or Variant.of(self.lrp_var, self.lrp_param)),)

    def _initial(self, R: Any) -> tuple[Tensor, bool]:
        """``R`` with a target axis, and whether it had none."""
        scores = self._record("auto").scores
        if not isinstance(R, Tensor):
            raise TypeError(f"R must be a tensor, got {type(R).__name__}: use torch.as_tensor(R)")
        R = R.detach().to(scores.dtype)
        if R.shape == scores.shape:
            return R.unsqueeze(1), True
        if R.dim() == scores.dim() + 1 and (R.shape[0], *R.shape[2:]) == tuple(scores.shape):
            return R, False
        sizes = ", ".join(map(str, scores.shape[1:]))
        raise ValueError(
            f"R must be the relevance of the output, ({scores.shape[0]}, {sizes}) or ({scores.shape[0]}, K, {sizes}), "
            f"got {tuple(R.shape)}"
        )
