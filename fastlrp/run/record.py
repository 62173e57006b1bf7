"""The result of one forward pass: asks for any number of targets are answered from it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from fastlrp import composites
from fastlrp.capture import structure as structures
from fastlrp.capture.graph import Value
from fastlrp.class_names import Labels, by_number
from fastlrp.composites import Composite
from fastlrp.errors import NotFiniteError
from fastlrp.groups import Groups
from fastlrp.pickling import StaysHere
from fastlrp.plan.kept import Keep
from fastlrp.progress import Progress, Wish
from fastlrp.run import runner
from fastlrp.run.answers import Answers
from fastlrp.run.budget import Budget
from fastlrp.run.contributions import Contributions
from fastlrp.run.diagnose import not_finite
from fastlrp.run.direction import Choice, Direction
from fastlrp.run.eager import eager
from fastlrp.run.finite import all_finite
from fastlrp.run.given_ids import ids_of
from fastlrp.run.group_answers import GroupAnswers, Over, check_block, check_over, contributions_asked, refuse_more
from fastlrp.run.inputs import Inputs, Relevance, refuse_autocast
from fastlrp.run.lent import Lent
from fastlrp.run.names import layer_names
from fastlrp.run.prepared import Prepared
from fastlrp.run.sparse.specialize import Path
from fastlrp.spellings import next_tokens
from fastlrp.targets import Initial, Targets

LrpAware = bool | Literal["sweep"]

_KEEP: dict[LrpAware, Keep] = {True: "coefficients", False: "activations", "sweep": "all"}


class ForwardRecord(StaysHere):
    """One forward pass with what does not depend on the target. Made by :meth:`fastlrp.Explainer.forward`.

    Args:
        at_once: it is asked right away and then closed: nothing can change in between.
        at: the positions of the output that it is then asked for, if they are known.

    Attributes:
        lrp_aware: whether the coefficients of all layers are kept, or computed again for each call; ``"sweep"``: also
            what other rules need, see :meth:`under`.
    """

    instead = "it holds the caches of one forward pass. Pickle or copy the explainer and the input"
    _answering = Answers
    labels: Labels | None = None
    """The names of the classes, if the explainer knows them."""

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
        with torch.no_grad():
            self._state: list[Any] | None = runner.forward(self.plan, inputs.tensors, _KEEP[lrp_aware], at)
        self._outputs: list[Tensor] = [self._state[v.index] for v in self.plan.graph.outputs]
        self._scores: Tensor = self._state[self.plan.graph.output.index]
        if prepared.captured.unpacked is not None:
            prepared.captured.unpacked.check(inputs.tensors, inputs.args, inputs.kwargs, self._scores)
        self._lent = None if at_once else Lent(inputs.tensors, self._outputs, self.plan.device)
        self.batch = self._scores.shape[0]
        self._answers = self._answering(self.plan, inputs, self.batch, bool(lrp_aware), max_memory)

    @property
    def output(self) -> Any:
        """What the model returned, equal to ``model(x)``.

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

    @eager
    def under(self, composite: str | Composite) -> ForwardRecord:
        """The same forward pass explained under other rules.

        What does not depend on a rule's numbers is taken over: activations, and after a forward pass with
        ``lrp_aware="sweep"`` the positive and negative parts of each layer too. A sweep over epsilon or alpha then
        costs one element-wise pass per layer and parameter, not a forward pass. Give the same
        :class:`~fastlrp.composites.Composite` object again, and its plan is used again.

        Args:
            composite: the name of a preset or a composite.

        Raises:
            RuntimeError: if this record is closed, or weights or input have changed since its forward pass.

        Example::

            relevance = record.under("gamma").relevance("top1")
        """
        state = self.state()
        other = copy.copy(self)
        other._lent = None if self._lent is None else self._lent.share()
        other.plan = self._prepared.under(self._resolved(composite))
        other._answers = self._answers.under(other.plan)
        with torch.no_grad():
            other._state = runner.take_over(other.plan, self.plan, state)
            if self.lrp_aware:
                other._state = runner.complete(other.plan, other._state, other.plan.coefficients)
        return other

    def _resolved(self, composite: str | Composite) -> Composite:
        """Operations without a rule are allowed under another composite where they are under the explainer's own."""
        found = composites.resolve(composite)
        allowed = self.plan.composite.unsupported
        return found if found.unsupported == allowed or allowed == "error" else replace(found, unsupported=allowed)

    # Life

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

    def __enter__(self) -> ForwardRecord:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def cached_bytes(self) -> int:
        """Bytes of everything that the record holds on to, the model's inputs and outputs included."""
        seen = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in self._open() if _is_tensor(t)}
        return sum(seen.values()) + sum(found.nbytes for found in self._answers.specialized)

    def _open(self) -> list[Any]:
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
        state = self._open()
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

    def of_sample(self, position: int) -> ForwardRecord:
        """The same plan on one sample of the batch alone."""
        tensors = [t.narrow(0, position, 1) for t in self._inputs.tensors]
        inputs = replace(self._inputs, tensors=tensors)
        single = ForwardRecord(self._prepared, inputs, self.lrp_aware, self._max_memory)
        return single if self.plan is self._prepared.plan else single.under(self.plan.composite)

    # Asking

    @eager
    def relevance(
        self,
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
        """Relevance of the input for K targets.

        Args:
            targets: see :class:`fastlrp.targets.Targets`; also ``"next"``: each next token of the text that the model
                was given, at the position before it.
            initial: ``"output"``, ``"one"`` or a callable from the output to initial relevance.
            layers: module paths, or ``"all"``: also give the relevance of those modules' outputs. Functional calls are
                named ``path.operation``, see :attr:`layer_names`.
            reduce: ``"channels"`` sums over the channel axis: ``(B, K, H, W)``.
            out: tensor, NumPy array or memmap of the result's shape to write into (with ``layers`` or several
                inputs: a dict of them by name).
            at: positions of the targets on an output ``(B, S, V)``: one, a list, ``fastlrp.each(…)``, ``"all"``,
                ``"pairs"``; see :class:`fastlrp.targets.Targets`.
            progress: True shows how many targets are done and the time left; ``"auto"`` shows it from the third
                second on; see :mod:`fastlrp.progress`.
            groups: parts of the input whose relevance is asked for as a whole: ``"tokens"`` (of ids or of a
                ``(B, S, D)`` input), ``"inputs"``, :func:`fastlrp.groups.patches`, ``labels`` or ``features``, or
                weights ``(G, *x.shape[1:])``.
            direction: of groups: ``"down"`` from the targets, one target after the other; ``"up"`` from the groups,
                for all targets at once; ``"middle"``: targets down and groups up to an edge between, and one product;
                ``"auto"``: what is estimated to cost least, see :attr:`direction`.

        Returns:
            ``(B, K, *x.shape[1:])``, structured as the model's input is; with ``groups`` ``(B, K, G)``; with ``layers``
            a dict from module path to the relevance of its output, plus ``"input"`` and ``"output"``.

        Raises:
            KeyError: for an unknown layer. IndexError, TypeError, ValueError: for targets or ``out`` that do not fit;
            ValueError: if ``max_memory`` is too small for one target.

        Example::

            several = record.relevance([3, 1, 4])  # (2, 3, 3, 16, 16)
            layers = record.relevance("top1", layers=["3"])  # a dict: "3", "input", "output"
            patches = record.relevance("all", groups=groups.patches(8))  # (2, 10, 4)
        """
        self._refuse_stale()
        return self.relevance_at_once(
            targets, initial, layers, reduce, out, at, progress, groups=groups, direction=direction
        )

    def relevance_at_once(
        self,
        targets: Any,
        initial: Initial,
        layers: Any,
        reduce: str | None,
        out: Any,
        at: Any = None,
        progress: Wish = False,
        groups: Groups = None,
        direction: Direction = "auto",
    ) -> Relevance:
        """:meth:`relevance` right after the forward pass: nothing can have changed since."""
        asked = self.asked(targets, initial, at)
        if groups is not None:
            refuse_more(layers, reduce, out)
            return self._of_groups(asked, groups, direction).relevance(0, asked.count)
        if direction != "auto":
            raise ValueError(f"direction={direction!r} needs groups=: relevance of every entry goes down")
        with Progress(asked.count, progress, "target") as bar:
            return self._answers.relevance(self._open(), asked, 0, asked.count, layers, reduce, out, bar)

    def asked(self, targets: Any, initial: Initial = "output", at: Any = None) -> Targets:
        """The targets as they are understood, checked; see :meth:`relevance`."""
        if isinstance(targets, str) and targets == "next":
            targets = next_tokens(ids_of(self._inputs, self._scores))
        if not isinstance(targets, (int, Tensor)):
            targets = by_number(targets, self.labels)
        asked = Targets(targets, self._scores, initial, at)
        if self.labels is not None:
            self.labels.check(asked.classes)
        # Relevance that starts with other numbers than the scores need not show that they are not finite.
        asked_for = asked.asked_for() if initial != "output" else None
        few = asked.terms is not None
        if asked_for is not None and (bool(asked_for.isnan().any()) or (few and not all_finite(asked_for))):
            raise NotFiniteError(not_finite(self.plan, self._open(), asked.block(0, 1)) or "")
        return asked

    def stream(
        self,
        targets: Any,
        initial: Initial = "output",
        layers: str | Sequence[str] | None = None,
        reduce: str | None = None,
        block: int | None = None,
        at: Any = None,
        groups: Groups = None,
        direction: Direction = "auto",
        over: Over = "targets",
    ) -> Iterator[tuple[range, Relevance]]:
        """Relevance in blocks of targets, or of groups, that fit into ``max_memory``.

        Args:
            targets, initial, layers, reduce, at, groups, direction: as for :meth:`relevance`.
            block: targets of a block; as many as fit into ``max_memory`` unless given.
            over: with ``groups``, what comes in blocks: ``"targets"``, or ``"groups"``, which goes up and gives all
                targets in each block, ``(B, K, number of groups)``.

        Yields:
            ``(range of positions in targets, relevance of that block)``, or with ``over="groups"``
            ``(range of groups, relevance of these)``; other arguments as for :meth:`relevance`.

        Raises:
            ValueError: for a ``block`` below 1; all others as :meth:`relevance`.

        Example::

            for positions, maps in record.stream("all", reduce="channels", block=4):
                assert maps.shape == (2, len(positions), 16, 16)
        """
        asked = self.asked(targets, initial, at)
        check_over(over, groups, block)
        if groups is not None:
            refuse_more(layers, reduce)
        about = None if groups is None else self._of_groups(asked, groups, direction)
        if about is not None and over == "groups":
            for found in about.blocks_of_groups():
                yield found
                self._refuse_stale()
            return
        size = block
        if size is None and about is None:
            size = self._answers.block_of_targets(self._open(), asked, layers, reduce)
        elif size is None and about is not None:
            size = about.block_of_targets()
        check_block(size, block)
        assert size is not None
        for start in range(0, asked.count, size):
            length = min(size, asked.count - start)
            self._refuse_stale()
            if about is not None:
                yield range(start, start + length), about.relevance(start, length)
                continue
            yield (
                range(start, start + length),
                self._answers.relevance(self._open(), asked, start, length, layers, reduce, None),
            )

    def _of_groups(self, asked: Targets, groups: Groups, direction: Direction) -> GroupAnswers:
        return GroupAnswers(self._answers, self._open(), asked, groups, direction)

    @eager
    def estimate(self, targets: Any, initial: Initial = "output", at: Any = None, groups: Groups = None) -> Choice:
        """Which way :meth:`relevance` of groups would go, why, and what each way is estimated to cost; goes none.

        Args:
            targets, initial, at, groups: as for :meth:`relevance`.

        Raises:
            ValueError: without groups.

        Example::

            print(record.estimate("all", groups=groups.patches(8)))
        """
        if groups is None:
            raise ValueError("estimate compares ways for groups=: relevance of every entry goes down")
        self._refuse_stale()
        return self._of_groups(self.asked(targets, initial, at), groups, "auto").estimate()

    @eager
    def contributions(
        self, groups: Groups, layers: str | Sequence[str] = "all", readout: Tensor | None = None, ledger: bool = False
    ) -> Contributions:
        """How much of each neuron's activation comes from each part of the input, for whole layers at once.

        Args:
            groups: as for :meth:`relevance`. layers: module paths or functional calls, or ``"all"`` modules.
            readout: a matrix ``(M, *layer.shape[1:])``, or ``(M, D)`` for the last axis: contributions to these linear
                readouts of a layer (a probe, an encoder's features, a difference of classes) in the place of neurons.
            ledger: whether the result's ``bias`` and ``stabilizer`` say what each keeps, by the textbook in float64.

        Returns:
            by module path ``(B, G, *layer.shape[1:])``; with what biases and stabilizers keep (``kept``) they add up to
            the activation. With ``readout`` ``(B, G, M)``, or ``(B, G, *positions, M)`` for the last axis.

        Raises:
            KeyError: for an unknown layer. UnsupportedOperationError: for rules that are not linear in relevance.

        Example::

            parts = record.contributions(groups.patches(8), layers=["3"])
            assert parts["3"].shape == (2, 4, 16, 8, 8)  # of each patch to each neuron
        """
        self._refuse_stale()
        with torch.no_grad():
            return contributions_asked(self._answers, self._open(), groups, layers, readout).whole(ledger)

    def stream_contributions(
        self, groups: Groups, layers: str | Sequence[str] = "all", readout: Tensor | None = None
    ) -> Iterator[tuple[range, Contributions]]:
        """:meth:`contributions` in blocks of groups that fit into ``max_memory``.

        Args:
            groups, layers, readout: as for :meth:`contributions`.

        Yields:
            ``(range of groups, contributions of these)``; ``kept`` is what the groups so far leave of the activation,
            with the last block what belongs to no group.

        Raises:
            ValueError: if ``max_memory`` is too small for one group; all others as :meth:`contributions`.

        Example::

            for parts, brought in record.stream_contributions(groups.patches(8), layers=["3"]):
                assert brought["3"].shape == (2, len(parts), 16, 8, 8)
        """
        self._refuse_stale()
        found = contributions_asked(self._answers, self._open(), groups, layers, readout).blocks()
        while True:
            self._refuse_stale()
            with torch.no_grad():
                following = next(found, None)
            if following is None:
                return
            yield following

    @property
    def layer_names(self) -> list[str]:
        """What ``layers=`` may name, in execution order: modules without children by path, functional calls as
        ``path.operation``."""
        return layer_names(self.plan)

    def values_of(self, layers: Any) -> dict[str, Value]:
        """Name -> value of everything that is asked for."""
        return self._answers.values(layers)


def _is_tensor(item: Any) -> bool:
    return isinstance(item, Tensor)
