"""How much of every neuron's activation each part of the input brings: one way up, for all neurons at once.

The relevance of group g for relevance R at a layer is ``sum_j R_j t_gj / f_j``, with the cotangent ``t`` of the layer's
register and the factor ``f`` that the register is multiplied with (``R = f * register``). Of relevance equal to the
activation itself, ``R = a``, neuron j passes ``a_j t_gj / f_j`` on to the group: its contribution. In chained form
``f = a`` and the contribution is ``t``. Where ``f`` is 0 nothing passes. The contributions of all groups are the
activation but for what biases and stabilizers keep, and for what belongs to no group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fastlrp.capture.graph import Node, Value
from fastlrp.groups import Resolved
from fastlrp.plan.narrow import wide
from fastlrp.plan.plan import Plan
from fastlrp.run.ascent import Ascent, Cotangent, on_whole_map, route
from fastlrp.run.ends import Operand, below
from fastlrp.run.kept_shares import kept_shares
from fastlrp.run.stages import blocks, stages
from fastlrp.run.way_up import prepared, start


@dataclass(eq=False)
class Contributions(Mapping[str, Tensor]):
    """Contributions by module path, ``(B, G, *layer.shape[1:])``, or with a readout ``(B, G, M)``.

    Attributes:
        kept: by module path what belongs to no group, ``(B, *layer.shape[1:])`` or ``(B, M)``: shares of biases and
            stabilizers, dead neurons, and entries of the input in no group. Contributions and this add up to the
            activation, or its readout.
        bias, stabilizer: what of it biases and stabilizers have, where that was asked for (``ledger=True``). The
            rest are dead neurons and entries in no group.
    """

    parts: dict[str, Tensor]
    kept: dict[str, Tensor] = field(default_factory=dict)
    bias: dict[str, Tensor] = field(default_factory=dict)
    stabilizer: dict[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Tensor:
        return self.parts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)


class Asked:
    """What is asked of hidden layers; see :meth:`fastlrp.run.record.ForwardRecord.contributions`."""

    def __init__(
        self, plan: Plan, state: list[Any], values: Mapping[str, Value], resolved: Resolved, batch: int,
        max_memory: int | None, readout: Tensor | None,
    ) -> None:  # fmt: skip
        self.plan, self.resolved, self.batch, self.max_memory = plan, resolved, batch, max_memory
        self.values, self.state = values, state
        self.asked_for = frozenset(plan.flows[value].register for value in values.values())
        self.ends, self.ascent, _ = self._prepared(self.asked_for)
        self.read = {name: _Reading(plan, name, value, self.ascent.state, readout) for name, value in values.items()}

    def whole(self, ledger: bool = False) -> Contributions:
        """Of all groups; with the shares of biases and stabilizers."""
        found = self._of_all_groups()
        if ledger:
            # Fused attention keeps what its steps keep one by one.
            inner = frozenset(r for a in self.plan.program.alternatives for r in a.inner)
            ends, ascent, nodes = self._prepared(self.asked_for | inner)

            def take(register: int, first: int, cotangent: Cotangent) -> None:
                t = on_whole_map(cotangent)
                for name in ends.get(register, ()):
                    both = self.read[name].of(t)
                    found.bias[name], found.stabilizer[name] = both[:, 0], both[:, 1]

            kept_shares(ascent, self.batch, nodes, take)
            for name, kept in found.kept.items():  # Where nothing is kept at all.
                found.bias.setdefault(name, torch.zeros_like(kept))
                found.stabilizer.setdefault(name, torch.zeros_like(kept))
        return found

    def _prepared(self, asked_for: frozenset[int]) -> tuple[dict[int, list[str]], Ascent, dict[int, frozenset[Node]]]:
        """Names by the end that has them, the way up, and of ends that share a register the nodes below them."""
        plan, ends, nodes = self.plan, dict[int, list[str]](), dict[int, frozenset[Node]]()
        shared: dict[int, frozenset[Operand]] = {}
        for name, value in self.values.items():
            end, found = plan.flows[value].register, below(plan, value, asked_for)
            if not found.whole:
                end = -1 - len(shared)
                shared[end], nodes[end] = found.operands, found.nodes
            ends.setdefault(end, []).append(name)
        path = route(plan, asked_for)
        own = frozenset(slot for v in self.values.values() for slot in (v.index, *plan.flows[v].factor.slots))
        ascent = prepared(plan, path, self.state, self.batch, path.slots | own, self.resolved)
        return ends, replace(ascent, shared=shared), nodes

    def _of_all_groups(self) -> Contributions:
        count = self.resolved.count
        parts = {name: self._zeros(reading, count) for name, reading in self.read.items()}
        held = sum(t.numel() * t.element_size() for t in parts.values())
        for _ in self._blocks(
            held, 2 * held // max(1, count), lambda name, first, t: parts[name].narrow(1, first, t.shape[1]).copy_(t)
        ):
            pass
        return Contributions(parts, {name: self.read[name].whole - parts[name].sum(1) for name in parts})

    def blocks(self) -> Iterator[tuple[range, Contributions]]:
        """Of one block of groups after the other."""
        kept = {name: reading.whole for name, reading in self.read.items()}
        each = sum(reading.numel for reading in self.read.values()) * self.batch * self.plan.dtype.itemsize
        found: dict[str, list[tuple[int, Tensor]]] = {name: [] for name in self.read}
        # A group's maps are there whole, scaled, and in the block that is handed out while the next one is made;
        # what is kept is there before, after and with the block.
        held = 3 * sum(t.nbytes for t in kept.values())
        for first, length in self._blocks(held, 5 * each, lambda name, at, t: found[name].append((at, t))):
            parts = {name: self._zeros(reading, length) for name, reading in self.read.items()}
            for name, pieces in found.items():
                while pieces:
                    at, t = pieces.pop()
                    parts[name].narrow(1, at - first, t.shape[1]).copy_(t)
                kept[name] = kept[name] - parts[name].sum(1)
            yield range(first, first + length), Contributions(parts, dict(kept))

    def _zeros(self, reading: _Reading, count: int) -> Tensor:
        return torch.zeros((self.batch, count, *reading.sizes), dtype=self.plan.dtype, device=self.plan.device)

    def _blocks(self, held: int, each: int, put: Callable[[str, int, Tensor], Any]) -> Iterator[tuple[int, int]]:
        ascent, count = self.ascent, self.resolved.count
        made = stages(ascent, self.batch, count, self.max_memory, held + ascent.made_bytes, each)

        def take(register: int, first: int, cotangent: Cotangent) -> None:
            t = on_whole_map(cotangent)
            for name in self.ends.get(register, ()):
                put(name, first, self.read[name].of(t))

        return blocks(ascent, made, count, lambda first, length: start(ascent, self.resolved, first, length), take)


class _Reading:
    """From the cotangent of a layer's register to contributions to the layer, or to linear readouts of it."""

    def __init__(self, plan: Plan, name: str, value: Value, state: list[Any], readout: Tensor | None) -> None:
        self.value, self.activation = value, state[value.index]
        flow = plan.flows[value]
        others = [s for s in flow.factor.slots if s != value.index]
        self.scale: Tensor | None = None
        if flow.factor.value is not value:
            self.scale = self.activation
        for slot in others:
            f = wide(state[slot])  # One over a small factor is out of float16's range.
            inverse = torch.where(f == 0, 0, 1 / torch.where(f == 0, 1, f))
            self.scale = inverse if self.scale is None else self.scale * inverse
        self.matrix = None if readout is None else _matrix(readout, name, value, self.activation)
        self.last_axis = self.matrix is not None and self.matrix.dim() == 2 and len(value.sizes) > 1
        self.sizes, self.whole = value.sizes, self.activation
        if self.matrix is not None:
            self.whole = self._read(self.activation.unsqueeze(1)).squeeze(1)
            self.sizes = tuple(self.whole.shape[1:])

    @property
    def numel(self) -> int:
        """Numbers of one sample and group."""
        return torch.Size(self.sizes).numel()

    def of(self, t: Tensor) -> Tensor:
        """Contributions ``(B, G, …)``."""
        t = t if self.scale is None else (t * self.scale.unsqueeze(1)).to(t.dtype)
        return t if self.matrix is None else self._read(t)

    def _read(self, t: Tensor) -> Tensor:
        assert self.matrix is not None
        return t @ self.matrix.t() if self.last_axis else t.flatten(2) @ self.matrix.flatten(1).t()


def _matrix(readout: Tensor, name: str, value: Value, like: Tensor) -> Tensor:
    whole = readout.dim() == len(value.sizes) + 1 and tuple(readout.shape[1:]) == value.sizes
    last = readout.dim() == 2 and readout.shape[1] == value.sizes[-1]
    if not (whole or last):
        sizes = ", ".join(map(str, value.sizes))
        raise ValueError(
            f"readout of shape {tuple(readout.shape)} does not fit layer {name!r} (B, {sizes}): give (M, {sizes}), or "
            f"(M, {value.sizes[-1]}) for readouts of its last axis"
        )
    return readout.detach().to(device=like.device, dtype=like.dtype)
