"""The entry point: an explainer of one model under one composite."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastlrp import composites
from fastlrp.canonizers import canonize
from fastlrp.capture import EXPORTING, Captured, capture
from fastlrp.composites import Composite
from fastlrp.dispatch import BACKENDS
from fastlrp.eager import eager
from fastlrp.finite import all_finite
from fastlrp.graph import Graph
from fastlrp.plan import Plan
from fastlrp.prepared import Prepared
from fastlrp.record import ForwardRecord, LrpAware, Relevance
from fastlrp.sparse.choose import Chooser, PathName
from fastlrp.targets import Initial
from fastlrp.watch import Watch

if TYPE_CHECKING:
    from fastlrp.replay import Replay

_KEPT = 8


@dataclass(eq=False)
class Inputs:
    """The model's input taken apart: tensors in order, and how to give relevance back in the same structure."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    tensors: list[Tensor]
    names: list[str]
    form: str

    @staticmethod
    def of(x: Any) -> Inputs:
        """A tensor, a tuple or list of positional inputs, or a dict of keyword inputs."""
        if isinstance(x, Tensor):
            return Inputs((x,), {}, [x], ["0"], "tensor")
        if isinstance(x, dict):
            args, kwargs, form = (), dict(x), "dict"
            items = [(str(k), v) for k, v in x.items()]
        elif isinstance(x, (tuple, list)):
            args, kwargs, form = tuple(x), {}, "tuple"
            items = [(str(i), v) for i, v in enumerate(x)]
        else:
            raise TypeError(
                f"x must be a tensor, a tuple of tensors or a dict of keyword inputs, got {type(x).__name__}"
            )
        found = [(k, v) for k, v in items if isinstance(v, Tensor)]
        if not found:
            raise ValueError("x has no tensor")
        return Inputs(args, kwargs, [v for _, v in found], [k for k, _ in found], form)

    def key(self) -> tuple[Any, ...]:
        """What a captured plan depends on: everything but the batch size and the tensors' values."""
        if self.form == "tensor":
            x = self.tensors[0]
            return (x.shape[1:], x.dtype, x.device)
        items = [*enumerate(self.args), *self.kwargs.items()]
        return tuple((k, v.shape[1:], v.dtype, v.device) if isinstance(v, Tensor) else (k, repr(v)) for k, v in items)

    def like(self, relevance: list[Tensor], reached: Sequence[bool]) -> Relevance:
        """Relevance in the structure of the input; None where an input has none (integers)."""
        if self.form == "tensor":
            return relevance[0]
        rest = iter(relevance)
        found = [next(rest) if has else None for has in reached]
        return tuple(found) if self.form == "tuple" else dict(zip(self.names, found, strict=True))


class Explainer:
    """Layer-wise relevance propagation for one model.

    Args:
        model: any ``nn.Module`` in evaluation mode; never modified.
        composite: a preset's name or a :class:`fastlrp.composites.Composite`.
        example_inputs: an input like those to come; captures at once instead of at the first call.
        backend: ``"auto"``, or one of :data:`fastlrp.dispatch.BACKENDS`: ``"torch"``, ``"cpu"`` (C++ kernels where
            there are, PyTorch elsewhere), ``"triton"``, ``"cuda"``, ``"reference"``.
        max_memory: bound on what propagation may hold at once, bytes or ``"2GB"``. Targets then go in blocks.
        output: which of several outputs to explain, by name (``"logits"``, ``"0"``) or position.
        paths: how layers with a weight are computed by compiled kernels: ``"auto"``, ``"dense"``, ``"sparse"`` (alive
            neurons only), or a dict from module path (``*`` and ``?`` match) to one of them. ``print(explainer.plan)``
            shows what was taken.

    Example::

        explainer = fastlrp.Explainer(model, "epsilon_plus")
        relevance = explainer(x, targets="top5")        # (B, 5, *x.shape[1:])

    Raises:
        ValueError: for an unknown composite, backend or budget. Capture raises
            :class:`fastlrp.errors.CaptureError`; an operation without a rule
            :class:`fastlrp.errors.UnsupportedOperationError`.
    """

    def __init__(
        self,
        model: nn.Module,
        composite: str | Composite = "epsilon_plus",
        *,
        example_inputs: Any = None,
        backend: str = "auto",
        max_memory: int | str | None = None,
        output: str | int | None = None,
        paths: PathName | Mapping[str, PathName] = "auto",
        profile: str | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        if backend != "auto" and backend not in BACKENDS:
            raise ValueError(f"unknown backend {backend!r}: expected 'auto' or one of {', '.join(BACKENDS)}")
        self.model, self.backend = model, backend
        self.composite = composites.resolve(composite, profile)
        self.max_memory = parse_bytes(max_memory)
        self._output, self._chooser = output, Chooser(paths)
        self._prepared: OrderedDict[tuple[Any, ...], Prepared] = OrderedDict()
        self._watch: Watch | None = None
        self._lock = threading.RLock()
        self.refreshed = 0
        if example_inputs is not None:
            self._prepared_for(self._inputs(example_inputs))

    @eager
    def __call__(
        self,
        x: Any,
        targets: Any,
        initial: Initial = "output",
        layers: str | Sequence[str] | None = None,
        reduce: str | None = None,
        out: Any = None,
    ) -> Relevance:
        """One forward pass and the relevance of K targets, ``(B, K, *x.shape[1:])``.

        See :meth:`fastlrp.record.ForwardRecord.relevance` for the arguments and errors.
        """
        with self._forward(x, True, at_once=True) as record:
            return record.relevance_at_once(targets, initial, layers, reduce, out)

    @eager
    def forward(self, x: Any, lrp_aware: LrpAware = True) -> ForwardRecord:
        """One forward pass from which any number of targets can be explained.

        Args:
            x: a tensor ``(B, …)``, a tuple of positional inputs or a dict of keyword inputs.
            lrp_aware: keep the coefficients of all layers (fast, more memory) or only the layers' inputs;
                ``"sweep"`` keeps what other parameters need, too: see :meth:`fastlrp.record.ForwardRecord.under`.

        Raises:
            ValueError: for NaN or infinity in the input. TypeError, ValueError: for a dtype or device that is not the
            model's.
        """
        return self._forward(x, lrp_aware)

    def _forward(self, x: Any, lrp_aware: LrpAware, at_once: bool = False) -> ForwardRecord:
        inputs = self._inputs(x)
        if lrp_aware not in (True, False, "sweep"):
            raise ValueError(f"lrp_aware must be True, False or 'sweep', got {lrp_aware!r}")
        return ForwardRecord(self._prepared_for(inputs), inputs, lrp_aware, self.max_memory, at_once)

    def refresh(self) -> None:
        """Forget what was captured: the next call captures again.

        Changed weights, modules, modes, attributes and hooks are noticed without it. What it is for: single entries
        of large tensors that were written without PyTorch's knowledge (through NumPy or ``.data``), which are noticed
        at the latest after 32 calls, see :mod:`fastlrp.fingerprint`; and settings inside an object that a module
        holds, such as a configuration.
        """
        with self._lock:
            self._prepared.clear()
            self._watch = None
            self.refreshed += 1

    def replay(
        self, example_inputs: Any, targets_count: int, initial: Initial = "output", reduce: str | None = None
    ) -> Replay:
        """The same explanation for inputs of one shape, as one CUDA graph; see :class:`fastlrp.replay.Replay`.

        For small models or few targets, where a GPU waits for the next launch::

            replay = explainer.replay(x, targets_count=10)
            output, relevance = replay(x, range(10))

        Raises:
            RuntimeError: without a GPU. TypeError, ValueError: for arguments that do not fit.
        """
        from fastlrp.replay import Replay

        return Replay(self, example_inputs, targets_count, initial, reduce)

    def verify(self, x: Any, targets: Any, **options: Any) -> Any:
        """Check the result against the reference, layer by layer; see :func:`fastlrp.verify.verify`."""
        from fastlrp.verify import verify

        return verify(self, x, targets, **options)

    @property
    def plan(self) -> Plan:
        """The plan of the latest capture; ``print`` it.

        Raises:
            RuntimeError: before the first capture.
        """
        if not self._prepared:
            raise RuntimeError("nothing is captured yet: call the explainer once, or give it example_inputs")
        return next(reversed(self._prepared.values())).plan

    # Inputs

    def _home(self) -> Tensor | None:
        """A parameter that shows the model's dtype and device."""
        with EXPORTING:  # Which swaps the parameters for tensors without data while it traces.
            return next((p for p in self.model.parameters() if p.is_floating_point()), None)

    def _inputs(self, x: Any) -> Inputs:
        inputs = Inputs.of(x)
        inputs.tensors = [t.detach() for t in inputs.tensors]
        home = self._home() if self._watch is None else self._watch.home
        batch, explainable = None, False
        for name, tensor in zip(inputs.names, inputs.tensors, strict=True):
            label = "x" if inputs.form == "tensor" else f"input {name!r}"
            if tensor.dim() == 0:
                raise ValueError(f"{label} must have a batch axis, got a scalar")
            batch = tensor.shape[0] if batch is None else batch
            if tensor.shape[0] != batch:
                raise ValueError(f"{label} has {tensor.shape[0]} samples, the first input has {batch}")
            if home is not None and (tensor.device, tensor.dtype) != (home.device, home.dtype):
                home = self._home()  # The remembered parameter may have been replaced.
            if home is not None and tensor.device != home.device:
                raise ValueError(f"{label} is on {tensor.device}, the model is on {home.device}: use x.to(…)")
            if tensor.is_floating_point():
                explainable = True
                if home is not None and tensor.dtype != home.dtype:
                    raise TypeError(f"{label} is {tensor.dtype}, the model's parameters are {home.dtype}: convert one")
                _check_finite(tensor, label)
        if not explainable:
            kinds = ", ".join(str(t.dtype) for t in inputs.tensors)
            raise TypeError(f"x is {kinds}: relevance is defined for float inputs, convert with x.float()")
        return inputs

    # Plans

    def _prepared_for(self, inputs: Inputs) -> Prepared:
        with self._lock:
            if self._watch is not None and self._watch.restructured():
                with EXPORTING:  # Another thread's export of this model looks like a change, until it ends.
                    restructured = self._watch.restructured()
                if restructured:
                    self._prepared.clear()
                    self._watch = None
            key = (*inputs.key(), torch.is_autocast_enabled())
            found = self._prepared.get(key) or self._prepared.get((*key, inputs.tensors[0].shape[0]))
            if found is None:
                return self._capture(inputs, key)
            values = found.watch.values()
            if values != found.values:
                found.renew(values)
            return found

    def _capture(self, inputs: Inputs, key: tuple[Any, ...]) -> Prepared:
        with EXPORTING:
            watch = self._watch or Watch(self.model)
            captured = self._trace(inputs, watch)
        first = next(t for t in inputs.tensors if t.is_floating_point())
        how = (self.backend, first.device, first.dtype, self._chooser)
        found = self._preparation(captured, self.composite, *how, watch)
        if captured.fixed_batch is not None:
            key = (*key, captured.fixed_batch)
        self._prepared[key] = found
        while len(self._prepared) > _KEPT:
            self._prepared.popitem(last=False)
        self._watch = watch
        return found

    # What the drop-in replacements of fastlrp.compat do otherwise

    _preparation: type[Prepared] = Prepared

    def _trace(self, inputs: Inputs, watch: Watch) -> Captured:
        """The captured model in the form that the rules see."""
        captured = capture(self.model, inputs.args, inputs.kwargs, self._output, watch.code.written)
        self._canonize(captured.graph)
        return captured

    def _canonize(self, graph: Graph) -> None:
        canonize(graph)


def explain(model: nn.Module, x: Any, targets: Any, composite: str | Composite = "epsilon_plus", **options: Any) -> Any:
    """Relevance of ``x`` for K targets in one call, ``(B, K, *x.shape[1:])``.

    Args:
        model, x, targets, composite: see :class:`Explainer` and :meth:`Explainer.__call__`.
        options: any other argument of either. For several calls on one model make an :class:`Explainer`, which
            captures once.
    """
    ours = {k: options.pop(k) for k in ("backend", "max_memory", "output", "paths", "profile") if k in options}
    return Explainer(model, composite, **ours)(x, targets, **options)


def _check_finite(x: Tensor, label: str) -> None:
    if not all_finite(x):
        bad = int((~torch.isfinite(x)).sum())
        raise ValueError(f"{label} contains {bad} NaN or infinite entries: relevance would be NaN everywhere")


def parse_bytes(budget: int | str | None) -> int | None:
    """``None``, bytes, or text such as ``"512MB"``, ``"2 GiB"`` (1 MB = 2**20 bytes).

    Raises:
        ValueError: for anything else, or a budget that is not positive.
    """
    if budget is None or (isinstance(budget, int) and not isinstance(budget, bool) and budget > 0):
        return budget
    pattern = r"\s*(\d+\.?\d*|\.\d+)\s*([KMGT]?)i?B?\s*"
    match = re.fullmatch(pattern, budget, re.IGNORECASE) if isinstance(budget, str) else None
    size = 0 if match is None else int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))
    if size < 1:
        raise ValueError(f"max_memory must be a positive number of bytes or text such as '2GB', got {budget!r}")
    return size
