"""The entry point: an explainer of one model under one composite."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from fastlrp import composites, markup
from fastlrp.backends.dispatch import BACKENDS
from fastlrp.byte_sizes import parse_bytes, size_text
from fastlrp.capture.chosen import Output
from fastlrp.composites import Composite
from fastlrp.composites.composite import Unsupported
from fastlrp.eager import eager
from fastlrp.groups import Groups
from fastlrp.pickling import Carried, plain
from fastlrp.plan.paths.choose import Chooser, PathName
from fastlrp.plan.plan import Plan
from fastlrp.precision import Precision, check_wish
from fastlrp.progress import Wish
from fastlrp.run.forward_pass import LrpAware
from fastlrp.run.hints import no_module
from fastlrp.run.inputs import Relevance
from fastlrp.run.plans import Plans
from fastlrp.run.record import ForwardRecord
from fastlrp.run.replay import Replay
from fastlrp.run.up.direction import Direction
from fastlrp.targets.class_names import Labels, Names, of_model
from fastlrp.targets.initial import Initial
from fastlrp.verify.compare import verify
from fastlrp.verify.verification import Verification


class Explainer:
    """Layer-wise relevance propagation for one model.

    Args:
        model: any ``nn.Module`` in evaluation mode; never modified.
        composite: a preset's name or a :class:`fastlrp.composites.Composite`.
        example_inputs: an input like those to come; captures at once instead of at the first call.
        backend: ``"auto"``, or one of :data:`fastlrp.backends.dispatch.BACKENDS`: ``"torch"``, ``"cpu"`` (C++ kernels
            where there are, PyTorch elsewhere), ``"triton"``, ``"cuda"``, ``"reference"``.
        max_memory: bound on what propagation may hold at once, bytes or ``"2GB"``. Targets then go in blocks,
            and 3x3 convolutions by plain sums, whose weights need no more memory.
        output: which of several outputs to explain, by name (``"logits"``, ``"0"``) or position; or a function of what
            the model returns that gives one tensor, ``lambda out: out.logits[:, -1]``. It is captured with the model:
            what it closes over is read then, and a change of that is not noticed (:meth:`refresh`).
        paths: how layers with a weight are computed by compiled kernels: ``"auto"``, ``"dense"``, ``"sparse"`` (alive
            neurons only), or a dict from module path (``*`` and ``?`` match) to one of them, each of which has to match
            a convolution or linear layer. ``print(explainer.plan)`` shows what was taken.
        unsupported: ``"error"`` for an operation without a rule; or ``"gradient"``: it takes its input times its own
            gradient (:class:`fastlrp.rules.InputGradient`). The plan's table and a verification name every such
            operation.
        labels: the names of the classes, a list or a dict from class to name: targets may then be names,
            ``explainer(x, ["tabby cat"])``. Unless given, those of a model's own ``config.id2label``.
        profile: whose stabilizers, biases and pools a preset given by name has; a key of
            :data:`fastlrp.composites.PROFILES`.
        precision: how products with weights are made on a CPU. ``"float32"``: in the model's own dtype, as plain sums.
            ``"bf16"``: of bfloat16, with sums, coefficients and results in float32 (1.0 to 1.9 times as fast with
            AVX512-BF16, unmeasured with AMX; about three digits). ``"auto"``: as ``"float32"``, but 3x3 convolutions by
            Winograd's filtering where nothing is divided by small sums (about twice as fast, nearly as exact); and of
            bfloat16 if the processor gains by it and PyTorch's own switches allow it, which are
            ``torch.backends.mkldnn.{conv,matmul}.fp32_precision = "bf16"`` and
            ``torch.set_float32_matmul_precision("medium")``. The model's output differs in its last bits at most.

    Example::

        explainer = fastlrp.Explainer(model, "epsilon_plus")
        relevance = explainer(x, targets="top5")        # (B, 5, *x.shape[1:])

    Raises:
        TypeError: for a model that is no ``nn.Module``. ValueError: for an unknown composite, backend, budget or
            precision, and from the first call on for ``paths`` that match no layer, or a model that ``"bf16"`` is not
            for (float16, float64, on a GPU). Capture raises :class:`fastlrp.CaptureError`; an operation without a rule
            :class:`fastlrp.UnsupportedOperationError`.
    """

    _plans_of: Callable[..., Plans] = Plans
    """Makes the plans; the drop-in replacements of :mod:`fastlrp.compat` give it arguments of their own."""

    _read_when_made = frozenset({"model", "composite", "backend", "precision", "max_memory", "labels"})

    @eager
    def __init__(
        self,
        model: nn.Module,
        composite: str | Composite = "epsilon_plus",
        *,
        example_inputs: Any = None,
        backend: str = "auto",
        max_memory: int | str | None = None,
        output: Output = None,
        paths: PathName | Mapping[str, PathName] = "auto",
        profile: str | None = None,
        unsupported: Unsupported | None = None,
        labels: Names | None = None,
        precision: Precision = "auto",
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(no_module(model))
        if backend != "auto" and backend not in BACKENDS:
            raise ValueError(f"unknown backend {backend!r}: expected 'auto' or one of {', '.join(BACKENDS)}")
        check_wish(precision)
        self.model, self.backend, self.precision = model, backend, precision
        self.composite = composites.resolve(composite, profile)
        if unsupported is not None:
            self.composite = replace(self.composite, unsupported=unsupported)
        self.max_memory = parse_bytes(max_memory)
        self.labels = of_model(model) if labels is None else Labels(labels)
        self._options: dict[str, Any] = {"output": output, "paths": paths}
        self._capture_anew()
        if example_inputs is not None:
            self._plans.of(self._plans.inputs(example_inputs))

    def _capture_anew(self) -> None:
        output, chooser = self._options["output"], Chooser(self._options["paths"])
        how = (self.model, self.composite, self.backend, output, chooser)
        self._plans = self._plans_of(*how, precision=self.precision, saves_memory=self.max_memory is not None)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._read_when_made and "_plans" in self.__dict__:
            raise AttributeError(
                f"an explainer keeps the {name} that it was made with, which its plans were made from: make another "
                f"one, fastlrp.Explainer(…, {name}=…)"
                + (", or ask a record, record.under(composite)" if name == "composite" else "")
            )
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        """Model, composite and options: pickles and deep copies capture the model anew at their first call."""
        state = {name: value for name, value in self.__dict__.items() if name != "_plans"}
        output = Carried(self._options["output"], "the function given as output=")
        return state | {"_options": self._options | {"output": output}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._options = {name: plain(value) for name, value in state["_options"].items()}
        self._capture_anew()

    def __repr__(self) -> str:
        return f"Explainer({type(self.model).__name__}, {self.composite.name!r}, backend={self.backend!r})"

    def _repr_html_(self) -> str:
        weights = sum(p.numel() for p in self.model.parameters() if not is_lazy(p))
        plan = self._plans.latest
        facts = [("model", f"{type(self.model).__name__}, {weights:,} weights"), ("composite", self.composite.name)]
        facts += [("backend", self.backend)]
        facts += [] if self._options["output"] is None else [("output", str(self._options["output"]))]
        facts += [] if self.max_memory is None else [("max_memory", size_text(self.max_memory))]
        note = "Nothing is captured yet: the first call does it." if plan is None else ""
        below = "" if plan is None else markup.details("plan", plan._repr_html_())
        return markup.card("Explainer", markup.table((), facts) + below, note)

    @eager
    def __call__(
        self,
        x: Any,
        targets: Any,
        initial: Initial = "output",
        layers: str | Sequence[str] | None = None,
        reduce: str | None = None,
        out: Any = None,
        at: Any = None,
        progress: Wish = False,
        groups: Groups = None,
        direction: Direction = "auto",
    ) -> Relevance:
        """One forward pass and the relevance of K targets, ``(B, K, *x.shape[1:])``; of groups ``(B, K, G)``.

        See :meth:`fastlrp.run.record.ForwardRecord.relevance` for the arguments and errors.
        """
        rows = at if isinstance(initial, str) else None  # A function may read the output at other positions, too.
        with self._forward(x, True, at_once=True, at=rows) as record:
            return record.relevance_at_once(
                targets, initial, layers, reduce, out, at, progress, groups=groups, direction=direction
            )

    @eager
    def forward(self, x: Any, lrp_aware: LrpAware = True) -> ForwardRecord:
        """One forward pass from which any number of targets can be explained.

        Args:
            x: a tensor or NumPy array ``(B, …)``, a tuple of positional inputs or a dict of keyword inputs.
            lrp_aware: keep the coefficients of all layers (fast, more memory) or only the layers' inputs;
                ``"sweep"`` keeps what other parameters need, too: see :meth:`fastlrp.run.record.ForwardRecord.under`.

        Raises:
            ValueError: for NaN or infinity in the input. TypeError, ValueError: for a dtype or device that is not the
            model's.

        Example::

            with explainer.forward(x) as record:
                relevance, best = record.relevance([3, 1]), record.relevance("top1")
        """
        return self._forward(x, lrp_aware)

    def _forward(self, x: Any, lrp_aware: LrpAware, at_once: bool = False, at: Any = None) -> ForwardRecord:
        inputs = self._plans.inputs(x)
        if lrp_aware not in (True, False, "sweep"):
            raise ValueError(f"lrp_aware must be True, False or 'sweep', got {lrp_aware!r}")
        record = ForwardRecord(self._plans.of(inputs), inputs, lrp_aware, self.max_memory, at_once, at)
        record.labels = self.labels
        return record

    def refresh(self) -> None:
        """Forget what was captured: the next call captures again.

        Changed weights, modules, modes, attributes and hooks are noticed without it. What it is for: single entries
        of large tensors that were written without PyTorch's knowledge (through NumPy or ``.data``), which are noticed
        at the latest after 32 calls, see :mod:`fastlrp.capture.fingerprint`; what functions close over, and global
        variables; and the inside of objects that are more than settings (:mod:`fastlrp.capture.held`).

        Example::

            explainer.refresh()
        """
        self._plans.refresh()

    @eager
    def replay(
        self,
        example_inputs: Any,
        targets_count: int,
        initial: Initial = "output",
        reduce: str | None = None,
        at: Any = None,
    ) -> Replay:
        """The same explanation for inputs of one shape, as one CUDA graph; see :class:`fastlrp.run.replay.Replay`.

        For small models or few targets, where a GPU waits for the next launch::

            replay = explainer.replay(x, targets_count=10)
            output, relevance = replay(x, range(10))

        Args:
            example_inputs: of the shape and dtype of those to come, on the GPU.
            targets_count: how many targets each call has, K.
            initial, reduce, at: see :meth:`fastlrp.ForwardRecord.relevance`.

        Raises:
            RuntimeError: without a GPU. TypeError, ValueError: for arguments that do not fit.
        """
        return Replay(self._plans, example_inputs, targets_count, initial, reduce, self.max_memory, at=at)

    @eager
    def verify(self, x: Any, targets: Any, **options: Any) -> Verification:
        """Check the result against the reference, layer by layer; see :func:`fastlrp.verify.compare.verify`.

        Args:
            x: as for :meth:`forward`.
            targets: as for :meth:`fastlrp.ForwardRecord.relevance`.
            options: ``initial``, ``tolerance``, ``at``, ``progress``.

        Example::

            verification = explainer.verify(x, "top1")
            assert verification.ok
            print(verification)
        """
        with self.forward(x) as record:
            return verify(record, targets, **options)

    @property
    def plan(self) -> Plan:
        """The plan of the latest capture; ``print`` it.

        Raises:
            RuntimeError: before the first capture.
        """
        plan = self._plans.latest
        if plan is None:
            raise RuntimeError("nothing is captured yet: call the explainer once, or give it example_inputs")
        return plan


def explain(
    model: nn.Module,
    x: Any,
    targets: Any,
    composite: str | Composite = "epsilon_plus",
    *,
    initial: Initial = "output",
    layers: str | Sequence[str] | None = None,
    reduce: str | None = None,
    out: Any = None,
    at: Any = None,
    progress: Wish = False,
    groups: Groups = None,
    direction: Direction = "auto",
    backend: str = "auto",
    max_memory: int | str | None = None,
    output: Output = None,
    paths: PathName | Mapping[str, PathName] = "auto",
    profile: str | None = None,
    unsupported: Unsupported | None = None,
    labels: Names | None = None,
    precision: Precision = "auto",
) -> Any:
    """Relevance of ``x`` for K targets in one call, ``(B, K, *x.shape[1:])``.

    For several calls on one model make an :class:`Explainer`, which captures it once.

    Args:
        model: any ``nn.Module`` in evaluation mode; never modified.
        x: a tensor or NumPy array ``(B, …)``, a tuple of positional inputs or a dict of keyword inputs.
        targets: a class, a list of classes, ``"all"``, ``"top5"``, a contrast, …, see
            :meth:`fastlrp.ForwardRecord.relevance`.
        composite: a preset's name or a :class:`fastlrp.Composite`.
        initial: ``"output"``: a target starts with its score; ``"one"``; or a function of the output.
        layers: module paths, or ``"all"``: then the result is a dict with the relevance of those modules' outputs.
        reduce: ``"channels"`` sums over the channel axis.
        out: where to write the result.
        at: positions of the targets on an output ``(B, S, V)`` or ``(B, C, H, W)``.
        progress: True, ``"auto"`` or False: show how many targets are done.
        groups: parts of the input whose relevance is asked for as a whole, see :mod:`fastlrp.groups`.
        direction: of groups: ``"down"``, ``"up"`` or ``"auto"``.
        backend, max_memory, output, paths, profile, unsupported, labels, precision: see :class:`Explainer`.

    Returns:
        as :meth:`fastlrp.ForwardRecord.relevance`: ``(B, K, *x.shape[1:])``, structured as the model's input is; with
        ``groups`` ``(B, K, G)``; with ``layers`` a dict from module path to relevance.

    Raises:
        TypeError, ValueError, IndexError, KeyError: as :class:`Explainer` and :meth:`fastlrp.ForwardRecord.relevance`.
        CaptureError: if the model cannot be captured. UnsupportedOperationError: for an operation without a rule.

    Example::

        relevance = fastlrp.explain(model, x, "top5", "epsilon_plus", reduce="channels")  # (2, 5, 16, 16)
    """
    explainer = Explainer(
        model, composite, backend=backend, max_memory=max_memory, output=output, paths=paths, profile=profile,
        unsupported=unsupported, labels=labels, precision=precision,
    )  # fmt: skip
    return explainer(
        x, targets, initial=initial, layers=layers, reduce=reduce, out=out, at=at, progress=progress, groups=groups,
        direction=direction,
    )  # fmt: skip
