"""What is asked of one forward pass: relevance of any number of targets, contributions, other rules."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastlrp import composites
from fastlrp.capture.graph import Value
from fastlrp.composites import Composite
from fastlrp.eager import eager, eager_blocks
from fastlrp.errors import NotFiniteError
from fastlrp.groups import Groups
from fastlrp.progress import Progress, Wish
from fastlrp.run import runner
from fastlrp.run.diagnose import not_finite
from fastlrp.run.finite import all_finite
from fastlrp.run.forward_pass import ForwardPass
from fastlrp.run.given_ids import ids_of, warn_without_positions
from fastlrp.run.group_answers import GroupAnswers, Over, check_block, check_over, contributions_asked, refuse_more
from fastlrp.run.inputs import Relevance
from fastlrp.run.names import layer_names
from fastlrp.run.up.contributions import Contributions
from fastlrp.run.up.direction import Choice, Direction
from fastlrp.targets.class_names import Labels, by_number
from fastlrp.targets.initial import Initial
from fastlrp.targets.spellings import next_tokens
from fastlrp.targets.targets import Targets
from fastlrp.transforms import refuse_transforms


class ForwardRecord(ForwardPass):
    """One forward pass with what does not depend on the target. Made by :meth:`fastlrp.Explainer.forward`.

    Args:
        at_once: it is asked right away and then closed: nothing can change in between.
        at: the positions of the output that it is then asked for, if they are known.

    Attributes:
        lrp_aware: whether the coefficients of all layers are kept, or computed again for each call; ``"sweep"``: also
            what other rules need, see :meth:`under`.
    """

    labels: Labels | None = None
    """The names of the classes, if the explainer knows them."""

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

    def of_sample(self, position: int) -> ForwardRecord:
        """The same plan on one sample of the batch alone."""
        tensors = [t.narrow(0, position, 1) for t in self._inputs.tensors]
        inputs = replace(self._inputs, tensors=tensors)
        single = ForwardRecord(self._prepared, inputs, self.lrp_aware, self._max_memory)
        return single if self.plan is self._prepared.plan else single.under(self.plan.composite)

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
            targets: see :class:`fastlrp.targets.targets.Targets`; also ``"next"``: each next token of the text that the
                model was given, at the position before it.
            initial: ``"output"``, ``"one"`` or a callable from the output to initial relevance.
            layers: module paths, or ``"all"``: also give the relevance of those modules' outputs. Functional calls are
                named ``path.operation``, see :attr:`layer_names`.
            reduce: ``"channels"`` sums over the channel axis: ``(B, K, H, W)``.
            out: tensor, NumPy array or memmap of the result's shape to write into (with ``layers`` or several
                inputs: a dict of them by name).
            at: positions of the targets on an output ``(B, S, V)``: one, a list, ``fastlrp.each(…)``, ``"all"``,
                ``"pairs"``; see :class:`fastlrp.targets.targets.Targets`.
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

    @eager
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
            return self._answers.relevance(self._slots_in_parts(), asked, 0, asked.count, layers, reduce, out, bar)

    @eager
    def asked(self, targets: Any, initial: Initial = "output", at: Any = None) -> Targets:
        """The targets as they are understood, checked; see :meth:`relevance`."""
        refuse_transforms()
        if isinstance(targets, str) and targets == "next":
            targets = next_tokens(ids_of(self._inputs, self._scores))
        if not isinstance(targets, (int, Tensor)):
            targets = by_number(targets, self.labels)
        warn_without_positions(self._inputs, self._scores, targets, at)
        asked = Targets(targets, self._scores, initial, at)
        asked.labels = self.labels
        if self.labels is not None:
            self.labels.check(asked.classes)
        # Relevance that starts with other numbers than the scores need not show that they are not finite.
        if initial == "output":
            return asked
        asked_for, few = asked.asked_for(), asked.terms is not None
        if asked_for is not None and (bool(asked_for.isnan().any()) or (few and not all_finite(asked_for))):
            raise NotFiniteError(not_finite(self.plan, self._slots(), asked.block(0, 1)) or "")
        return asked

    @eager_blocks
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
            size = self._answers.block_of_targets(self._slots_in_parts(), asked, layers, reduce)
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
                self._answers.relevance(self._slots_in_parts(), asked, start, length, layers, reduce, None),
            )

    def _of_groups(self, asked: Targets, groups: Groups, direction: Direction) -> GroupAnswers:
        return GroupAnswers(self._answers, self._slots(), asked, groups, direction)

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

        They are the layer's own, as if the model ended there: what reads a neuron, or that nothing does, changes none.

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
            return contributions_asked(self._answers, self._slots(), groups, layers, readout).whole(ledger)

    @eager_blocks
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
        found = contributions_asked(self._answers, self._slots(), groups, layers, readout).blocks()
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
