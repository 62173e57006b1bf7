"""One forward pass that is kept: its slots, its output, and whether weights, input and output are still the same."""

from __future__ import annotations

from typing import Any, Literal, Self

from torch import Tensor

from fastlrp.capture import structure as structures
from fastlrp.pickling import StaysHere
from fastlrp.plan.kept import Keep
from fastlrp.plan.paths.path import Path
from fastlrp.run import runner
from fastlrp.run.answers import Answers
from fastlrp.run.budget import Budget
from fastlrp.run.given_ids import note_index
from fastlrp.run.inputs import Inputs, refuse_autocast
from fastlrp.run.lent import Lent
from fastlrp.run.parted import join, tensors
from fastlrp.run.prepared import Prepared
from fastlrp.run.threads import Computing
from fastlrp.run.up.direction import Choice

LrpAware = bool | Literal["sweep"]

_KEEP: dict[LrpAware, Keep] = {True: "coefficients", False: "activations", "sweep": "all"}


class ForwardPass(StaysHere):
    """The slots that one forward pass filled, open until :meth:`close`; refuses what has changed since.

    Args:
        at_once: it is asked right away and then closed: nothing can change in between.
        at: the positions of the output that it is then asked for, if they are known.

    Attributes:
        plan: that the pass was made for. lrp_aware: see :class:`fastlrp.ForwardRecord`. batch: how many samples.
    """

    instead = "it holds the caches of one forward pass. Pickle or copy the explainer and the input"
    _answering = Answers

    def __init__(
        self,
        prepared: Prepared,
        inputs: Inputs,
        lrp_aware: LrpAware,
        max_memory: int | None,
        at_once: bool = False,
        at: Any = None,
    ) -> None:
        self._prepared, self._values_read = prepared, prepared.values
        self.plan, self.lrp_aware, self._inputs, self._max_memory = prepared.plan, lrp_aware, inputs, max_memory
        work = 2 * self.plan.work * len(inputs.tensors[0])  # The model's own products, and those for denominators.
        with Computing(work, self.plan.device):
            try:
                self._state: list[Any] | None = runner.forward(
                    self.plan, inputs.tensors, _KEEP[lrp_aware], at, self.fixed_batch is None
                )
            except (RuntimeError, IndexError) as error:
                note_index(error, inputs)
                raise
        self._outputs: list[Tensor] = [self._state[v.index] for v in self.plan.graph.outputs]
        self._scores: Tensor = self._state[self.plan.graph.output.index]
        if prepared.captured.unpacked is not None:
            prepared.captured.unpacked.check(inputs.tensors, inputs.args, inputs.kwargs, self._scores)
        self._lent = None if at_once else Lent(inputs.tensors, self._outputs, self.plan.device)
        self.batch = self._scores.shape[0]
        self._answers = self._answering(self.plan, inputs, self.batch, bool(lrp_aware) and not at_once, max_memory)

    @property
    def output(self) -> Any:
        """What the model returned, equal to ``model(x)`` but for the last bits of large convolutions.

        Up to 1 MB it is a copy, which may be changed. A larger one is the record's own memory: after a change in place
        the record refuses to answer.
        """
        return structures.rebuild(self._prepared.captured.structure, self._handed_out())

    @property
    def scores(self) -> Tensor:
        """The output that is explained, ``(B, C, …)``: :attr:`output` itself, or the one of several."""
        return self._handed_out()[self.plan.graph.outputs.index(self.plan.graph.output)]

    def _handed_out(self) -> list[Tensor]:
        return self._outputs if self._lent is None else self._lent.outputs()

    def close(self) -> None:
        """Free the caches. A closed record keeps its output and answers nothing more.

        Example::

            record = explainer.forward(x)
            record.close()
        """
        if self._state is not None and self._lent is not None:
            self._lent.close()
        self._state = None
        self._answers.specialized.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def cached_bytes(self) -> int:
        """Bytes of everything that the record holds on to, the model's inputs and outputs included."""
        storages = [t.untyped_storage() for t in tensors(self._slots_in_parts())]
        seen = {storage.data_ptr(): storage.nbytes() for storage in storages}
        return sum(seen.values()) + sum(found.nbytes for found in self._answers.specialized)

    def _slots(self) -> list[Any]:
        """The slots, those in parts of the batch put together."""
        return join(self._slots_in_parts())

    def _slots_in_parts(self) -> list[Any]:
        """The slots, of which some may be in parts: see :mod:`fastlrp.run.parted`."""
        if self._state is None:
            raise RuntimeError("this record is closed: call explainer.forward(x) again")
        return self._state

    def _refuse_stale(self) -> None:
        """Caches belong to the weights and inputs of the forward pass, which share memory with the caller's."""
        refuse_autocast(self.plan.device)
        if self._prepared.watch.values() != self._values_read:
            raise RuntimeError("the model's weights have changed since this record's forward pass: make a new record")
        if self._lent is not None:
            self._lent.refuse_changed()

    def state(self) -> list[Any]:
        """The slots of the forward pass, for those who check it.

        Raises:
            RuntimeError: if the record is closed, or weights, input or output have changed since.
        """
        state = self._slots()
        self._refuse_stale()
        return state

    @property
    def budget(self) -> Budget:
        """What one block of targets may take."""
        return self._answers.budget

    @property
    def paths(self) -> dict[str, Path]:
        """How the latest call computed each layer with a weight, by module path: dense or for alive neurons only.

        ``print(record.plan.table(record.paths))`` shows it in the plan's table.
        """
        return self._answers.paths

    @property
    def direction(self) -> Choice | None:
        """Which way the latest call with groups went, why, and what either way was estimated to cost."""
        return self._answers.direction

    @property
    def fixed_batch(self) -> int | None:
        """The only batch size that the captured graph takes; None if it takes any."""
        return self._prepared.captured.fixed_batch
