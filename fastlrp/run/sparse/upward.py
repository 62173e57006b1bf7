"""Shared sparsity on the way up: dead outputs of a layer are not computed, and its dead inputs are not read.

Up, an output neuron gets its coefficient times the product of the weight with what the groups bring to its inputs.
Where the coefficient is zero nothing need be computed; and where the layer below had a zero, no group brings anything.
With input and output exchanged that is what the kernels of the way down compute (:mod:`fastlrp.run.sparse.specialize`):
a convolution's way up is the way down through the transposed convolution. On a GPU one kernel makes all products of a
rule, with the coefficients of the entries that leave; on a CPU each product is multiplied with its own behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fastlrp.plan.compact import Compact, Mask, Pattern, kernels_for, picked
from fastlrp.plan.forms import Affine, AvgPool, MaxPool, Sum
from fastlrp.plan.paths.choose import estimate
from fastlrp.plan.paths.rates import Rates
from fastlrp.plan.steps import BackwardStep

AROUND = 1.35
"""How much longer a layer takes than by the rates of the way down, for what stands around the product: rows are made of
maps, scaled, and made maps again. VGG-16's last convolutions, 196 groups: 2.2 times as fast as the library's
product, for which 3.0 is estimated (AMD EPYC)."""

Choose = Callable[[Affine, float, float], bool]
"""``(layer, share of the dense product's time, the same of what would be done instead) -> sparse``."""


@dataclass(eq=False)
class SparseUp:
    """One step for alive neurons only.

    Attributes:
        step: whose transpose it is. below, above: the neurons alive at its input and output. share: of the dense
            product's time that it is estimated to take; 0 for a pool.
    """

    step: BackwardStep
    state: Sequence[Any]
    below: Pattern
    above: Pattern
    share: float

    def __call__(self, t: Tensor | Compact) -> Compact | None:
        """The cotangent above; None where the step would rather have it dense."""
        if isinstance(self.step.form, MaxPool):
            return self._pool(self.step.form, t) if isinstance(t, Compact) and t.pattern is self.below else None
        assert isinstance(self.step.form, Affine)
        arriving = t if isinstance(t, Compact) and t.pattern is self.below else Compact.of(_whole(t), self.below)
        return self._affine(self.step.form, arriving)

    def _affine(self, form: Affine, t: Compact) -> Compact:
        stride, padding, dilation, transposed, _, groups = form.geometry.arguments
        kernels, weights = kernels_for(t.values), _packed(form)
        own = [self.state[slot] for slot in form.coefficients]

        def product(coefficients: list[Tensor], weights: list[Tensor], scales_leaving: bool) -> Compact:
            values = kernels.sparse_conv_relevance(
                t.parts, self.below.batch, t.count, coefficients, weights,
                [form.leaving[0] // groups, form.arriving[0] // groups], self.above.tensors, list(form.arriving[1:]),
                list(form.leaving[1:]), form.kernel, stride, padding, dilation, not transposed, None, [], [], None,
                scales_leaving,
            )  # fmt: skip
            return Compact(values, self.above, t.count)

        if form.merges_products:
            return product(own, weights, True)
        made = [product([self._ones], [weight], False) for weight in weights]
        sources = [(*part.parts, coefficient) for part, coefficient in zip(made, own, strict=True)]
        values = kernels.sparse_sum(sources, self.above.tensors, self.above.batch, t.count)
        return Compact(values, self.above, t.count)

    @property
    def copied_bytes(self) -> int:
        """Of the weights that it keeps copies of."""
        form = self.step.form
        if not isinstance(form, Affine):
            return 0
        takes_it = len(form.leaving) == 1 and getattr(kernels_for(form.weights[0]), "takes_transposes", False)
        return 0 if takes_it and not any(form.splits) else form.copied_bytes()

    @cached_property
    def _ones(self) -> Tensor:
        assert isinstance(self.step.form, Affine)
        like: Tensor = self.state[self.step.form.coefficients[0]]
        return like.new_ones((self.below.batch, *self.step.form.leaving))

    def _pool(self, form: MaxPool, t: Compact) -> Compact:
        rows = self._winners if t.rows is None else t.rows[self._winners]
        found = Compact(t.values, self.above, t.count, rows)
        if form.scale is None:
            return found
        source = (*found.parts, self.state[form.scale])
        kernels = kernels_for(t.values)
        return Compact(kernels.sparse_sum([source], self.above.tensors, self.above.batch, t.count), self.above, t.count)

    @cached_property
    def _winners(self) -> Tensor:
        """The row of each output's winner."""
        assert isinstance(self.step.form, MaxPool)
        index: Tensor = self.state[self.step.form.index]
        batch, places = self.below.batch, torch.Size(self.below.sizes[1:]).numel()
        row_of = torch.full((batch, self.below.sizes[0], places), -1, device=index.device)
        sample, channel, place = _entries(self.below)
        row_of[sample, channel, place] = torch.arange(self.below.entries, device=index.device)
        sample, channel, place = _entries(self.above)
        return row_of[sample, channel, index.flatten(2)[sample, channel, place]]


def _whole(t: Tensor | Compact) -> Tensor:
    return t.dense() if isinstance(t, Compact) else t


def _entries(pattern: Pattern) -> tuple[Tensor, Tensor, Tensor]:
    """Sample, channel and flattened place of each entry."""
    counts = pattern.offsets[1:] - pattern.offsets[:-1]
    places = torch.Size(pattern.sizes[1:]).numel()
    every = torch.arange(len(counts), device=counts.device)
    position = torch.repeat_interleave(every, counts, output_size=pattern.entries)
    return position // places, pattern.channels.long(), position % places


def _packed(form: Affine) -> list[Tensor]:
    """Weights with inputs and outputs exchanged, as the kernel reads them; a CPU reads linear layers as they lie."""
    if "up" not in form._packed:
        found = []
        for weight, splits in zip((form._canonical(w) for w in form.weights), form.splits, strict=True):
            kernels, turned = kernels_for(weight), (weight.clamp(min=0) if splits else weight).transpose(1, 2)
            if len(form.leaving) > 1:
                found.append(kernels.sparse_pack(turned.contiguous()))
            else:
                matrix = turned[0, :, :, 0]
                found.append(matrix if getattr(kernels, "takes_transposes", False) else matrix.contiguous())
        form._packed["up"] = found
    return form._packed["up"]


def fits(step: BackwardStep, state: Sequence[Any]) -> bool:
    """Whether a step is a layer that the kernels take upwards."""
    form = step.form
    if not isinstance(form, Affine) or form.is_reduced or form.factors is not None:
        return False
    return not form.is_split(state) and len(step.ins) == len(step.outs) == 1 and step.up is not None


@dataclass(eq=False)
class Alive:
    """Which steps go up for alive neurons only.

    Attributes:
        steps: those. boxed: registers that are still computed in boxes beside them.
    """

    steps: dict[BackwardStep, SparseUp]
    boxed: set[int]


def _only_moves(step: BackwardStep) -> bool:
    """Whether a step's transpose copies entries, as below a flattened map."""
    moves = step.node is not None and step.node.kind == "move" and step.up is not None
    return moves and not step.slots and len(step.ins) == len(step.outs) == 1


def _moved(step: BackwardStep, mask: Mask) -> Mask:
    """Where cotangents can be other than zero above a move."""
    values = picked(mask)
    assert step.up is not None
    # Ones, not values, which may cancel where entries are added up.
    moved: Tensor = step.up((values != 0).to(values.dtype).unsqueeze(1)).squeeze(1)
    return moved, None


def planned(
    steps: Sequence[BackwardStep], state: Sequence[Any], shares: Mapping[int, float], choose: Choose, count: int,
    itemsize: int, rates: Rates | None, waste: float = 1.0,
) -> Alive:  # fmt: skip
    """The steps for alive neurons, chosen in the order of the way up.

    Args:
        state: with all slots that the steps read. shares: of the map that is computed of registers in boxes. choose:
            what is wished for, or cheaper than a box. count: groups at once. waste: how many times as many are
            computed, because rows hold whole vectors of groups.
    """
    # Where the groups' cotangents at a register can be other than zero; None: nothing is known.
    masks: dict[int, list[Mask] | None] = {}
    known: dict[Any, Pattern] = {}
    found = Alive({}, set(shares))

    def pattern(of: list[Mask]) -> Pattern:
        key = tuple((id(values), id(index)) for values, index in of)
        if key not in known:
            known[key] = Pattern.of(*of)
        return known[key]

    def pattern_below(form: Affine, of: list[Mask] | None) -> Pattern:
        if of is not None:
            return pattern(of)
        like = state[form.coefficients[0]]
        key = len(like), form.leaving
        if key not in known:
            known[key] = Pattern.full(*key, like.device)
        return known[key]

    for step in steps:
        form, below = step.form, masks.get(step.out) if len(step.outs) == 1 else None
        above: list[Mask] | None = None
        sparse = False
        if isinstance(form, Affine):
            above = [(state[slot], None) for slot in form.coefficients] if form.factors is None else None
            if above is not None and fits(step, state):
                out, into = pattern(above), pattern_below(form, below)
                cost = estimate(form, out.density, into.density, count, itemsize, rates)
                times = len(form.coefficients) if form.takes_one_of_two(False) else 1
                share = AROUND * waste * cost.sparse * times / cost.dense
                sparse = choose(form, share, max(shares[r] if r in found.boxed else 1.0 for r in step.ins))
                if sparse:
                    found.steps[step] = SparseUp(step, state, into, out, share)
        elif isinstance(form, MaxPool) and below is not None and all(index is None for _, index in below):
            above = [(values, state[form.index]) for values, _ in below]
            sparse = any(step.out in earlier.ins for earlier in found.steps)
            if sparse:
                found.steps[step] = SparseUp(step, state, pattern(below), pattern(above), 0.0)
        elif isinstance(form, Sum):
            above = below
        elif below is not None and isinstance(form, AvgPool):
            above = [(form.reached(picked(mask)), None) for mask in below]
        elif below is not None and _only_moves(step):
            above = [_moved(step, mask) for mask in below]
        for register in step.ins:
            before = masks.get(register, [])
            masks[register] = None if above is None or before is None else [*before, *above]
        if sparse or not found.boxed.intersection(step.outs):
            found.boxed.difference_update(step.ins)
    return found
