"""How much of every neuron's activation each part of the input brings: one way up, for all neurons at once.

The relevance of group g for relevance R at a layer is ``sum_j R_j t_gj``, with the cotangent ``t`` of a register that
holds R. Of relevance equal to the activation itself, ``R = a``, neuron j passes ``a_j t_gj`` on to the group: its
contribution. In chained form the register is multiplied with ``a``, and the contribution is ``t``. Neither depends on
what reads the neuron above, nor on whether anything does: the plan has a register for the layer alone, before whatever
its readers multiply relevance with. The contributions of all groups are the activation but for what biases and
stabilizers keep, and for what belongs to no group. A neuron of 0 has none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastlrp.capture.graph import Value
from fastlrp.groups import Resolved
from fastlrp.plan.plan import Plan
from fastlrp.run import runner
from fastlrp.run.up.ascent import Ascent, Cotangent, on_whole_map, route
from fastlrp.run.up.kept_shares import kept_shares
from fastlrp.run.up.stages import blocks, stages
from fastlrp.run.up.way_up import prepared, start


@dataclass(eq=False)
class Contributions(Mapping[str, Tensor]):
    """Contributions by module path, ``(B, G, *layer.shape[1:])``, or with a readout ``(B, G, M)``.

    Attributes:
        kept: by module path what belongs to no group, ``(B, *layer.shape[1:])`` or ``(B, M)``: shares of biases and
            stabilizers, dead neurons, and entries of the input in no group. Contributions and this add up to the
            activation, or its readout.
        bias, stabilizer: what of it biases and stabilizers have, where that was asked for (``ledger=True``). The
            rest belongs to no group.
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
        self.resolved, self.batch, self.max_memory, self.values = resolved, batch, max_memory, values
        self.plan = plan.with_apart(frozenset(values.values()))
        self.state = runner.take_over(self.plan, plan, state)
        self.ends: dict[int, list[str]] = {}
        for name, value in values.items():
            self.ends.setdefault(self.plan.flows[value].register, []).append(name)
        self.ascent = self._prepared(frozenset(self.ends))
        state = self.ascent.state
        self.read = {name: _Reading(self.plan, name, value, state, readout) for name, value in values.items()}

    def whole(self, ledger: bool = False) -> Contributions:
        """Of all groups; with the shares of biases and stabilizers."""
        found = self._of_all_groups()
        if ledger:
            # Fused attention keeps what its steps keep one by one.
            inner = frozenset(r for a in self.plan.program.alternatives for r in a.inner)
            ascent = self._prepared(frozenset(self.ends) | inner)

            def take(register: int, first: int, cotangent: Cotangent) -> None:
                t = on_whole_map(cotangent)
                for name in self.ends.get(register, ()):
                    both = self.read[name].of(t)
                    found.bias[name], found.stabilizer[name] = both[:, 0], both[:, 1]

            kept_shares(ascent, self.batch, take)
            for name, kept in found.kept.items():  # Where nothing is kept at all.
                found.bias.setdefault(name, torch.zeros_like(kept))
                found.stabilizer.setdefault(name, torch.zeros_like(kept))
        return found

    def _prepared(self, asked_for: frozenset[int]) -> Ascent:
        path = route(self.plan, asked_for)
        own = frozenset(slot for v in self.values.values() for slot in (v.index, *self.plan.flows[v].factor.slots))
        return prepared(self.plan, path, self.state, self.batch, path.slots | own, self.resolved)

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
        # The register is that of this value alone: relevance itself, or the activation (where it is finite) times it.
        passes = (self.activation != 0) & ~self.activation.isinf()
        self.scale: Tensor | None = None
        if not plan.flows[value].factor.slots:
            self.scale = torch.where(passes, self.activation, 0)
        elif not bool(passes.all()):
            self.scale = passes.to(self.activation.dtype)
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
        if self.last_axis:
            return t @ self.matrix.t()
        return t.reshape(*t.shape[:2], self.value.numel) @ self.matrix.reshape(-1, self.value.numel).t()


def _matrix(readout: Tensor, name: str, value: Value, like: Tensor) -> Tensor:
    whole = readout.dim() == len(value.sizes) + 1 and tuple(readout.shape[1:]) == value.sizes
    last = readout.dim() == 2 and tuple(readout.shape[1:]) == value.sizes[-1:]
    if not (whole or last):
        of_layer, wanted = ("".join(f", {n}" for n in value.sizes), "".join(f" {n}," for n in value.sizes))
        by_axis = f", or (M, {value.sizes[-1]}) for readouts of its last axis" if len(value.sizes) > 1 else ""
        raise ValueError(
            f"readout of shape {tuple(readout.shape)} does not fit layer {name!r} (B{of_layer or ','}): give "
            f"(M,{wanted.rstrip(',')}){by_axis}"
        )
    return readout.detach().to(device=like.device, dtype=like.dtype)
