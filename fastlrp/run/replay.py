"""The same explanation for input after input of one shape, as one CUDA graph: the CPU launches it once per call.

A pass through ResNet-50 and its propagation are several hundred kernels. Where each is short (few samples, few targets)
the GPU waits for the CPU to launch the next. A :class:`Replay` records all of them once, on memory that stays where it
is, and repeats them with a single launch.
"""

from __future__ import annotations

import dataclasses
import sys
import threading
from typing import Any

import torch
from torch import Tensor

from fastlrp.capture import structure as structures
from fastlrp.capture.export import EXPORTING
from fastlrp.looking import LOOKS
from fastlrp.plan.passes.fusion import fuse_unpooling
from fastlrp.plan.steps import Steps
from fastlrp.run.answers import Answers
from fastlrp.run.inputs import Inputs, Relevance
from fastlrp.run.plans import Plans
from fastlrp.run.prepared import Prepared
from fastlrp.run.record import ForwardRecord
from fastlrp.run.recording import CudaGraph, Recording
from fastlrp.run.sparse.specialize import Specialized
from fastlrp.targets.classes import Terms
from fastlrp.targets.initial import Initial
from fastlrp.targets.positions import positions
from fastlrp.targets.targets import Targets


class Replay:
    """Relevance of K class targets for inputs of one shape, repeated as one CUDA graph.

    Made by :meth:`fastlrp.Explainer.replay`. What depends on numbers is left out, so that every call does the same: no
    basis of living entries, no look at the input for NaN or for ids that an embedding does not have. On a GPU weights
    that are written without PyTorch's knowledge (fused optimisers, ``.data``) are not noticed either: looking at them
    would wait for the device. Make a new replay.

    Args:
        plans: of the model under its rules.
        example_inputs: an input of the shape to come.
        targets_count: K.
        initial: ``"output"``, ``"one"`` or a callable from the output to initial relevance, of operations that do not
            wait for the device.
        reduce: ``"channels"`` sums over the channel axis. max_memory: in bytes, see :class:`fastlrp.Explainer`.
        recording: what repeats the work; a CUDA graph if None.
        at: positions of all targets to come, see :class:`fastlrp.targets.targets.Targets`; K counts every target at
            each.

    Raises:
        RuntimeError: without a GPU, or if something in the model or in a custom rule waits for the device.
        TypeError, ValueError: for arguments that do not fit, as the explainer raises them.
    """

    def __init__(
        self,
        plans: Plans,
        example_inputs: Any,
        targets_count: int,
        initial: Initial = "output",
        reduce: str | None = None,
        max_memory: int | None = None,
        recording: Recording | None = None,
        at: Any = None,
    ) -> None:
        if type(targets_count) is not int or targets_count < 1:
            raise ValueError(f"targets_count must be a number of targets, at least 1, got {targets_count!r}")
        self.targets_count = targets_count
        self._plans, self._initial, self._reduce, self._max_memory = plans, initial, reduce, max_memory
        self._lock, self._stale, self._made, self._at = threading.Lock(), "", False, at
        with torch.inference_mode(False), torch.no_grad():
            example = plans.inputs(example_inputs)
            self._device = example.tensors[0].device
            self._recording: Recording | None = self._recorder() if recording is None else recording
            self._refreshed, self._switches = plans.refreshed, _switches(self._device)
            self._prepared = plans.of(example)
            self._watch, self._values = self._prepared.watch, self._prepared.values  # The values before the plan.
            self._plan = self._prepared.plan  # Its constants must live as long as the graph that reads them.
            self._static = dataclasses.replace(example, tensors=[t.clone() for t in example.tensors])
            self._try()
            self._outputs, self._relevance = self._recording.record(self._run)
        self._refuse_stale()
        self._made = True

    def _recorder(self) -> Recording:
        if self._device.type != "cuda":
            raise RuntimeError(
                f"a replay is a CUDA graph, and the model is on {self._device}: move model and input to a GPU, or call "
                "the explainer itself, which needs no replay"
            )
        return CudaGraph(self._device)

    def _try(self) -> None:
        """One ordinary pass: all that can be wrong is found here, and memory for the targets is made."""
        record = _Pass(self._prepared, self._static, self._max_memory)
        if isinstance(self._at, str) and self._at == "pairs":
            raise ValueError(
                "a replay keeps its positions, so that at='pairs' is not for it: name positions, at=[3, 5]"
            )
        self._at = None if self._at is None else positions(self._at, record._scores)
        places = 1 if self._at is None else self._at.cells.shape[1]
        if self.targets_count % places:
            raise ValueError(
                f"targets_count={self.targets_count} must be so many targets at each of {places} positions"
            )
        classes = [0] * (self.targets_count // places)
        record.explain(Targets(classes, record._scores, self._initial, self._at), self._reduce)
        self._index = torch.zeros(record.batch, self.targets_count, dtype=torch.int64, device=self._device)
        # Classes are checked against this on the host. It takes no memory.
        self._shape = torch.zeros((), dtype=record._scores.dtype).expand(record._scores.shape)

    def _run(self) -> tuple[list[Tensor], Relevance]:
        """What is recorded: the model's outputs and the relevance, from the static input and the static classes."""
        before = LOOKS.set(False)
        try:
            record = _Pass(self._prepared, self._static, self._max_memory)
            asked = _Checked(self._index, record._scores, self._initial, self._at)
            return record.outputs(), record.explain(asked, self._reduce)
        finally:
            LOOKS.reset(before)

    def __call__(self, x: Any, targets: Any, copy: bool = True) -> tuple[Any, Relevance]:
        """The model's output and the relevance of K classes; waits for nothing on the device.

        Args:
            x: an input of the example's structure, shapes, dtypes and device.
            targets: an int, K classes, or ``(B, K)`` of them; ``"all"`` if there are K. Give them from the CPU: they
                are checked there, and a tensor on the GPU has to be waited for.
            copy: results of their own. With False they are the graph's own memory, which the next call of any thread
                overwrites.

        Returns:
            ``(output, relevance)``: what ``model(x)`` returns, and ``(B, K, *x.shape[1:])`` in the input's structure.

        Raises:
            IndexError: for a class that the output does not have.
            TypeError, ValueError: for an input or targets that do not fit.
            RuntimeError: if weights, modules, modes, precision switches or autocast are not what they were when this
                was made: make a new replay.
        """
        inputs, index = self._fitting(x), self._classes(targets)
        with self._lock, torch.inference_mode(False), torch.no_grad():
            self._refuse_stale()
            recording = self._open()
            with recording.turn([*self._static.tensors, self._index]):
                for place, given in zip(self._static.tensors, inputs.tensors, strict=True):
                    place.copy_(given, non_blocking=True)
                if index is not None:
                    self._index.copy_(index, non_blocking=True)
                recording.replay()
                outputs = _copied(self._outputs) if copy else self._outputs
                relevance = _copied(self._relevance) if copy else self._relevance
        return structures.rebuild(self._prepared.captured.structure, outputs), relevance

    def close(self) -> None:
        """Give the graph and its memory back. A closed replay answers nothing more."""
        with self._lock:
            self._recording = None
            self._outputs, self._relevance = [], None

    def __enter__(self) -> Replay:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # Checks: on the host alone

    def _open(self) -> Recording:
        if self._recording is None:
            raise RuntimeError("this replay is closed: make a new one with explainer.replay(…)")
        return self._recording

    def _fitting(self, x: Any) -> Inputs:
        """``x`` taken apart, if it is in everything but its numbers what this was made for."""
        made, inputs = self._static, self._static.of(x)
        if (inputs.form, inputs.names) != (made.form, made.names):
            raise ValueError(
                f"x is a {inputs.form} with the tensors {', '.join(inputs.names)}; this replay was made for a "
                f"{made.form} with {', '.join(made.names)}"
            )
        for name, tensor, place in zip(made.names, inputs.tensors, made.tensors, strict=True):
            label = "x" if made.form == "tensor" else f"input {name!r}"
            for what in ("shape", "dtype", "device"):
                got, want = getattr(tensor, what), getattr(place, what)
                if got != want:
                    got, want = (tuple(n) if what == "shape" else n for n in (got, want))
                    raise ValueError(
                        f"{label} has {what} {got}, this replay was made for {want}: convert it, or make one for it"
                    )
        if inputs.key() != made.key():  # Only what is no tensor is left to differ.
            raise ValueError("x holds other values beside its tensors than this replay was made for: make another")
        return inputs

    def _classes(self, targets: Any) -> Tensor | None:
        """``(B, K)`` classes on the CPU; None where the output has none to choose from."""
        if isinstance(targets, str) and targets != "all":
            raise ValueError(
                f"targets {targets!r} depends on the output, which a replay does not wait for: name classes"
            )
        asked = Targets(targets, self._shape, at=self._at)
        if asked.index is None:
            raise TypeError("a replay takes classes, not initial relevance or contrasts: call the explainer itself")
        if asked.count != self.targets_count:
            raise ValueError(
                f"got {asked.count} targets, this replay was made for {self.targets_count}: make one for that number"
            )
        return asked.index

    def _refuse_stale(self) -> None:
        if not self._stale:
            self._stale = self._change()
        if self._stale:
            raise RuntimeError(f"{self._stale} since this replay was made: make a new one with explainer.replay(…)")
        now = _switches(self._device)
        for name, was in self._switches.items():
            if now[name] != was:
                raise RuntimeError(
                    f"{name} was {was} when this replay was made and is {now[name]} now: set it back, or make a new one"
                )

    def _change(self) -> str:
        if self._watch.restructured():
            with EXPORTING:  # Another thread's export of this model looks like a change, until it ends.
                if self._watch.restructured():
                    return "the model's modules, parameters, modes, attributes or hooks changed"
        # The bits of weights on a GPU are read when it is made: a call waits for nothing on the device.
        if self._watch.values(bits=self._device.type == "cpu" or not self._made) != self._values:
            return "the model's weights changed"
        return "" if self._plans.refreshed == self._refreshed else "explainer.refresh() was called"


class _SameWork(Answers):
    """The same work whatever the numbers are: nothing is looked at, no neuron is left out."""

    looks_for_nan = may_settle = False

    def specialize(
        self, state: list[Any], key: tuple[Any, ...], steps: Steps, count: int, below: Steps | None = None
    ) -> Specialized:
        return Specialized(fuse_unpooling(steps), [], 0)


class _Pass(ForwardRecord):
    """A forward pass and its explanation by the same work whatever the numbers are."""

    _answering = _SameWork

    def __init__(self, prepared: Prepared, inputs: Inputs, max_memory: int | None) -> None:
        # With a budget there is no basis, whose size depends on how many entries are alive.
        super().__init__(prepared, inputs, True, sys.maxsize if max_memory is None else max_memory, at_once=True)

    def outputs(self) -> list[Tensor]:
        """All tensors that the model returns."""
        state = self._slots()
        return [state[v.index] for v in self.plan.graph.outputs]

    def explain(self, asked: Targets, reduce: str | None) -> Relevance:
        """Relevance of the input for the targets, from the slots that the recorded pass has filled."""
        return self._answers.relevance(self._slots(), asked, 0, asked.count, None, reduce, None)


class _Checked(Targets):
    """Classes ``(B, K)`` and an ``initial`` that were checked before: looking at numbers would wait for the device."""

    def _is_relevance(self, targets: Any) -> bool:
        return False

    def _chosen(self, targets: Tensor) -> Terms:
        places = 1 if self._at is None else self._at.cells.shape[1]
        return Terms(targets.unflatten(1, (places, -1)).unsqueeze(3))

    def _initial_values(self, initial: Initial) -> Tensor:
        if isinstance(initial, str):
            return super()._initial_values(initial)
        return initial(self.output.clone()).to(self.output.dtype)


def _copied(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _copied(part) for name, part in tree.items()}
    if isinstance(tree, (tuple, list)):
        return type(tree)(_copied(part) for part in tree)
    return None if tree is None else tree.clone()


def _switches(device: torch.device) -> dict[str, Any]:
    """What decides how PyTorch computes, beside the tensors: a graph keeps to what held when it was recorded."""
    backends = torch.backends
    return {
        "torch.backends.cudnn.conv.fp32_precision": backends.cudnn.conv.fp32_precision,  # type: ignore[attr-defined]
        "torch.backends.cuda.matmul.fp32_precision": backends.cuda.matmul.fp32_precision,
        "torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction": (
            backends.cuda.matmul.allow_fp16_reduced_precision_reduction
        ),
        "torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction": (
            backends.cuda.matmul.allow_bf16_reduced_precision_reduction
        ),
        "torch.backends.cudnn.enabled": backends.cudnn.enabled,
        "torch.backends.cudnn.deterministic": backends.cudnn.deterministic,
        "torch.are_deterministic_algorithms_enabled()": torch.are_deterministic_algorithms_enabled(),
        "autocast": torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type),
    }
