"""Turns the steps of a schedule into sparse ones for one forward pass, where that pays.

From the last step up it is settled what each register must hold: everything, or only the entries of a pattern, because
all who read it multiply the others by zero. From the first step down the steps are written anew: sparse where they are
chosen, with a change of form where a dense register meets a sparse reader.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastlrp.capture.graph import Node
from fastlrp.plan.compact import Compact, Pattern, kernels_for
from fastlrp.plan.forms import Affine, AvgPool, MaxPool, Sum
from fastlrp.plan.paths.path import Path
from fastlrp.plan.steps import BLOCK, BackwardStep, Emission, Steps
from fastlrp.run.sparse.needs import Needs
from fastlrp.run.sparse.wants import Choose, Wants

Change = Callable[[Any], Compact]


@dataclass(eq=False)
class Specialized:
    """Steps for one forward pass. ``paths``: what was chosen; ``nbytes``: of the patterns."""

    steps: Steps
    paths: list[Path]
    nbytes: int

    @property
    def copied_bytes(self) -> int:
        """Of the weights that sparse layers keep copies of, and of those that are there while one is made."""
        kept = [path.form.copied_bytes(path.narrow) for path in self.paths if path.sparse]
        return sum(kept) + 2 * max(kept, default=0)

    @property
    def by_module(self) -> dict[str, Path]:
        """The paths by the module that they are of."""
        return {path.form.path: path for path in self.paths}


@dataclass(eq=False)
class Outlook:
    """A way down before its steps are written.

    ``wants``: of its registers. ``paths``: what was chosen. ``moved``: entries of one sample and target that sums
    read and write between the layers, of rows those of their patterns; ``changed``: those of changes of form and of
    dense pools. Both are zero before :meth:`measure`, and sparse layers are then given as few entries as they may be.
    """

    wants: Wants
    paths: list[Path]
    moved: int = 0
    changed: int = 0
    steps: Steps | None = None

    def measure(self) -> None:
        """Find what moves between the layers, if that is not known."""
        if self.steps is not None:
            rewrite = _Rewrite(self.wants.needs.state, self.wants, dry=True)
            rewrite.rewritten(self.steps)
            self.steps, self.moved, self.changed = None, rewrite.moved, rewrite.changed


def outlook(steps: Steps, needs: Needs, choose: Choose) -> Outlook:
    """How the steps would go for the neurons alive in a state; what moves between them is still to be measured.

    Args:
        steps: backward steps and emissions in order. needs: of their registers. choose: which layers are sparse.
    """
    wants = Wants(needs, choose)
    return Outlook(wants, wants.paths[::-1], steps=steps)


def written(steps: Steps, state: Sequence[Any], found: Outlook) -> Specialized:
    """The steps as they were looked at."""
    return _Rewrite(state, found.wants).rewritten(steps)


def specialize(steps: Steps, state: Sequence[Any], choose: Choose, below: Steps | None = None) -> Specialized:
    """The same steps for the neurons alive in ``state``; see :func:`outlook`.

    Args:
        state: all slots that they read, and those of ``below``. below: steps that would follow, which say what they
            need.
    """
    return written(steps, state, outlook(steps, Needs(state, steps, below), choose))


class _Rewrite:
    """Writes the steps anew, from the first down. ``dry``: only to see what that would cost; they cannot run."""

    def __init__(self, state: Sequence[Any], wants: Wants, dry: bool = False) -> None:
        self.state, self.needs, self.wants, self.dry = state, wants.needs, wants, dry
        self.compact: set[int] = set()
        self.winners: dict[int, float] = {}
        self.nbytes = self.moved = self.changed = 0
        self._seen: set[int] = set()

    def rewritten(self, steps: Steps) -> Specialized:
        written: Steps = []
        for register in self.needs.given:
            self._convert(register, written, (), "(model) (initial relevance)", None)
        joined, sparse, rows = self._joined(steps), self.wants.sparse, self.wants.rows
        for position, (step, frees) in enumerate(steps):
            if position in joined:
                continue  # The sum that follows does both.
            if type(step) is Emission:
                written.append((step, frees))
            elif position - 1 in joined:
                affine, early = steps[position - 1]
                written.append((self._affine_onto(affine, step), (*early, *(r for r in frees if r != affine.out))))
            elif not (id(step) in sparse or (self.compact and self._is_sparse(step))):
                written.append((self._dense(step), frees))
            else:
                written.append((self._sparse(step), frees))
            if type(step) is not Emission:
                for register in step.outs:
                    if register in rows:
                        self._convert(register, written, frees, step.name, step.node)
                    elif register in self.compact:
                        self._open(register, written, frees, step)
        return Specialized(written, self.wants.paths[::-1], self.nbytes)

    def _is_sparse(self, step: BackwardStep) -> bool:
        given = id(step) in self.wants.either and not self.compact.isdisjoint(step.ins)
        return given or id(step) in self.wants.sparse

    def _joined(self, steps: Steps) -> set[int]:
        """Positions of layers whose result only goes into the sum that follows at once: the sum is where they begin."""
        sparse, either = self.wants.sparse, self.wants.either
        return {
            position for position in self.needs.joinable(steps)
            if id(steps[position][0]) in sparse
            and (id(steps[position + 1][0]) in sparse or id(steps[position + 1][0]) in either)
        }  # fmt: skip

    def _convert(self, register: int, written: Steps, frees: tuple[int, ...], name: str, node: Node | None) -> None:
        """Make a dense register compact if that is what all its readers want."""
        if register in self.needs.ends or register in self.wants.maps or register not in self.wants.rows:
            return  # What waits at the end of these steps is taken in either form.
        pattern = self._pattern(register)
        if pattern is not None and register not in self.compact and register not in frees:
            numel, run = _rows(pattern), lambda r: Compact.of(r, pattern)
            written.append((BackwardStep(f"{name}, made compact", node, run, (register,), (), (register,), (numel,), 0,
                                         least=BLOCK), ()))  # fmt: skip
            self.compact.add(register)
            self.changed += _changed(pattern)

    def _open(self, register: int, written: Steps, frees: tuple[int, ...], step: BackwardStep) -> None:
        """Make a compact register a map if all who read it are dense."""
        if register not in self.compact or not self.wants.is_map(register) or register in frees:
            return
        pattern = self.needs.of(register)
        assert pattern is not None
        self.compact.discard(register)
        self.changed += _changed(pattern)
        numel = math.prod(pattern.sizes)
        written.append((BackwardStep(f"{step.name}, made a map", step.node, Compact.dense, (register,), (), (register,),
                                     (numel,), 0), ()))  # fmt: skip

    def _dense(self, step: BackwardStep) -> BackwardStep:
        """A dense step, which makes maps of what it reads where sparse ones read that too."""
        if isinstance(step.form, Sum):
            self.moved += (len(step.ins) + 1) * step.numel
        elif isinstance(step.form, MaxPool):
            self.changed += step.numel
        if not self.compact or self.compact.isdisjoint(step.ins):
            return step
        compact = [register for register in step.ins if register in self.compact]
        for register in compact:
            pattern = self.needs.of(register)
            assert pattern is not None
            self.changed += _changed(pattern)

        def on_maps(*operands: Any) -> Any:
            return step.run(*(each.dense() if type(each) is Compact else each for each in operands))

        return BackwardStep(step.name, step.node, on_maps, step.ins, step.slots, step.outs, step.numels, step.work,
                            step.form, takes_bf16=step.takes_bf16)  # fmt: skip

    def _pattern(self, register: int) -> Pattern | None:
        pattern = self.needs.of(register)
        if pattern is not None and id(pattern) not in self._seen:
            self._seen.add(id(pattern))
            self.nbytes += pattern.nbytes
        return pattern

    def _sparse(self, step: BackwardStep) -> BackwardStep:
        form, pattern = step.form, self._pattern(step.out)
        if isinstance(form, Affine):
            return self._affine(step, form, pattern)
        assert pattern is not None
        self.compact.add(step.out)
        if isinstance(form, (MaxPool, AvgPool)):
            return self._pool(step, form, pattern)
        assert isinstance(form, Sum)
        return self._sum(step, form, pattern)

    def _affine(self, step: BackwardStep, form: Affine, pattern: Pattern | None) -> BackwardStep:
        state = form.reads(self.state)
        path = self.wants.path_of[id(step)]
        path.arriving = min(path.above, self.winners.get(step.ins[0], 1.0))
        dense = pattern is None or form.factors is not None or form.is_split(self.state)
        if self.dry:
            self._arriving(step.ins[0], form)
            self.compact.update(() if dense else step.outs)
            return step
        if dense:
            pattern, leaving = None, form.everywhere(self.state)
            self.nbytes += leaving.nbytes
        else:
            assert pattern is not None
            leaving = pattern
            self.compact.add(step.out)
        arrive, narrow = self._arriving(step.ins[0], form), id(step) in self.wants.narrow

        def relevance_below(register: Any) -> Any:
            return form.relevance_at(arrive(register), state, leaving, dense, narrow=narrow)

        return _step(relevance_below, step.ins, step.out, pattern, step)

    def _arriving(self, register: int, form: Affine) -> Change:
        return self._compacted(register, lambda: self.needs.pattern(self.needs.coefficients(form)))

    def _compacted(self, register: int, pattern_of: Callable[[], Pattern]) -> Change:
        """What makes an operand compact: nothing if it is, a copy if somebody else wants all of it."""
        if register in self.compact:
            return lambda r: r
        pattern = pattern_of()
        self.changed += _changed(pattern)
        return lambda r: Compact.of(r, pattern)

    def _affine_onto(self, layer: BackwardStep, total: BackwardStep) -> BackwardStep:
        form, pattern = layer.form, self._pattern(total.out)
        assert isinstance(form, Affine)
        assert isinstance(total.form, Sum)
        state, other = form.reads(self.state), 1 - total.ins.index(layer.out)
        slot = total.form.scales[other]
        scale = None if slot is None else self.state[slot]
        assert pattern is not None
        arrive, begin = self._arriving(layer.ins[0], form), self._compacted(total.ins[other], lambda: pattern)
        self.compact.add(total.out)
        narrow = id(layer) in self.wants.narrow

        def relevance_on_top(register: Any, other: Any) -> Any:
            return form.relevance_at(arrive(register), state, pattern, False, [(*begin(other).parts, scale)], narrow)

        return _step(relevance_on_top, (layer.ins[0], total.ins[other]), total.out, pattern, layer)

    def _pool(self, step: BackwardStep, form: MaxPool | AvgPool, pattern: Pattern) -> BackwardStep:
        pooled = self.needs.pattern(self.needs.above_pools[id(step)])
        arrive = self._compacted(step.ins[0], lambda: pooled)
        if isinstance(form, MaxPool):
            self.winners[step.out] = pooled.entries / max(1, pooled.batch * torch.Size(form.leaving).numel())
        if self.dry:
            return step
        below, starts, rows, scale = self._gathered(form, pattern, pooled)
        self.nbytes += below.nbytes + starts.nbytes + rows.nbytes
        alone = below.entries == rows.numel()

        def unpooled(operand: Any) -> Compact:
            register = arrive(operand)
            if scale is not None or register.pattern is not pooled:
                scaled = kernels_for(register.values).sparse_sum(
                    [(*register.parts, scale)], pooled.tensors, pooled.batch, register.count
                )
                register = Compact(scaled, pooled, register.count)
            if alone:
                moved = rows if register.rows is None else register.rows[rows]
                return Compact(register.values, below, register.count, moved)
            values = kernels_for(register.values).sparse_gather_sum(register.parts, starts, rows, register.count)
            return Compact(values, below, register.count)

        return _step(unpooled, step.ins, step.out, below, step)

    def _gathered(
        self, form: MaxPool | AvgPool, pattern: Pattern, pooled: Pattern
    ) -> tuple[Pattern, Tensor, Tensor, Tensor | None]:
        """The entries of a pool's input that get something, where each finds it, and what that is multiplied with."""
        leaving = list(form.leaving[1:])
        if isinstance(form, MaxPool):
            index, scale = self.state[form.index], None if form.scale is None else self.state[form.scale]
            found = kernels_for(index).sparse_winners(index, pooled.tensors, leaving, *form.geometry.arguments)
        else:
            scale = form.scales(self.state)
            if scale is not None:
                scale = scale.expand(pooled.batch, *form.arriving)
            found = kernels_for(pattern.offsets).sparse_windows(
                pattern.tensors,
                pooled.tensors,
                pooled.batch,
                leaving,
                list(form.arriving[1:]),
                *form.geometry.windows,
            )
        offsets, channels, starts, rows = found
        if channels.numel() == pattern.entries:  # All that is wanted, as a rule.
            return pattern, starts, rows, scale
        return Pattern(offsets, channels, pooled.batch, form.leaving), starts, rows, scale

    def _sum(self, step: BackwardStep, form: Sum, pattern: Pattern) -> BackwardStep:
        scales = [None if slot is None else self.state[slot] for slot in form.scales]
        changes = [self._compacted(register, lambda: pattern) for register in step.ins]
        self.moved += (len(step.ins) + 1) * _rows(pattern)

        def summed(*operands: Any) -> Compact:
            registers = [change(operand) for change, operand in zip(changes, operands, strict=True)]
            sources = [(*r.parts, s) for r, s in zip(registers, scales, strict=True)]
            count = registers[0].count
            kernels = kernels_for(pattern.offsets)
            return Compact(kernels.sparse_sum(sources, pattern.tensors, pattern.batch, count), pattern, count)

        return _step(summed, step.ins, step.out, pattern, step)


def _changed(pattern: Pattern) -> int:
    """Entries that a change of form reads and writes."""
    return math.prod(pattern.sizes) + _rows(pattern)


def _rows(pattern: Pattern) -> int:
    """Entries per sample, as many as the samples have on average."""
    return -(-pattern.entries // max(1, pattern.batch))


def _step(
    run: Callable[..., Any], ins: tuple[int, ...], out: int, pattern: Pattern | None, old: BackwardStep
) -> BackwardStep:
    numel = old.numel if pattern is None else _rows(pattern)
    return BackwardStep(old.name, old.node, run, ins, (), (out,), (numel,), old.work, old.form, BLOCK)
