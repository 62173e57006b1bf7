"""The backward step of attention, fused or written out: relevance per unit of queries, keys and values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastlrp.aten._attention_up import attention_up, hides_later
from fastlrp.capture.graph import Value
from fastlrp.kinds.attention_into import told_apart, write_results
from fastlrp.plan.builder import Builder
from fastlrp.plan.steps import Flow
from fastlrp.plan.total import multiply
from fastlrp.plan.window import Rooms


class Operands:
    """Queries, keys and values of attention, and what its probabilities are made of.

    Attributes:
        values: query, key and value. output: of the attention. causal, scale, cap: see
            :func:`fastlrp.reference.attention.attention_forward`. slots: what :meth:`of` reads.
        heads: the axes between batch and positions, ``(B, *heads, S, D)``.
    """

    def __init__(
        self,
        values: tuple[Value, Value, Value],
        output: Value,
        causal: bool,
        scale: float,
        cap: float,
        slots: list[int],
    ) -> None:
        self.values, self.output, self.slots = values, output, slots
        self.causal, self.scale, self.cap = causal, scale, cap
        self.heads = values[0].sizes[:-2]

    def of(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Query, key and value ``(B, H, S, D)`` and the mask, from the tensors in the slots."""
        query, key, value, mask = self.apart(tensors)
        return heads_in_one_axis(query), heads_in_one_axis(key), heads_in_one_axis(value), self.mask_over_heads(mask)

    def apart(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Query, key and value ``(B, *heads, S, D)`` and a mask that broadcasts to ``(B, *heads, S, T)``."""
        raise NotImplementedError

    @property
    def keys(self) -> int:
        """How many keys there are."""
        return self.values[1].sizes[-2]

    def key_rows(self, key: Tensor) -> Tensor:
        """From the key's own layout to positions before channels, and back: the same for both."""
        return key

    def mask_over_heads(self, mask: Tensor | None) -> Tensor | None:
        """A mask that broadcasts to ``(B, *heads, S, T)`` as one that broadcasts to ``(B, H, S, T)``."""
        if mask is None or len(self.heads) == 1:
            return mask
        full = mask.reshape(*[1] * (len(self.heads) + 3 - mask.dim()), *mask.shape)
        if len(self.heads) == 0:
            return full.unsqueeze(1)
        return full.expand(full.shape[0], *self.heads, *full.shape[-2:]).flatten(1, -3)

    def wide(self, relevance: Tensor) -> Tensor:
        """``(B, K, *heads, S, E)`` to ``(B, K, H, S, E)``."""
        return relevance.unsqueeze(2) if not self.heads else relevance.flatten(2, -3)


@dataclass(frozen=True)
class Sharing:
    """What query, key and value take, None for all to the values; epsilon of the product of queries and keys."""

    shares: tuple[float, float, float] | None
    epsilon: float


def heads_in_one_axis(x: Tensor) -> Tensor:
    """``(B, *heads, S, D)`` to ``(B, H, S, D)``."""
    return x.unsqueeze(1) if x.dim() == 3 else x.flatten(1, -3)


def add_step(
    b: Builder, operands: Operands, sharing: Sharing, flow: Flow, share: int | None, log_sum: int
) -> tuple[int, ...]:
    """Append the step; returns the registers of query, key and value, or of the value alone.

    Args:
        share: slot of what the arriving register is multiplied with, None for 1. log_sum: slot of the log-sum-exps.
    """
    uniform, y = sharing.shares is not None, operands.output
    step = _AttentionStep(
        operands,
        sharing,
        b.operation("attention_relevance" if uniform else "attention_value_relevance"),
        b.operation_into("attention_relevance") if uniform else None,
        b.operation("attention_up", noted=False),
    )
    slots, numels = [share, y.index, log_sum, *operands.slots], [x.numel for x in step.targets]
    work = (5 if uniform else 1) * 2 * y.numel * operands.keys
    return b.step_with_results(
        step.down, [flow.register], slots, numels, work, up=step.up, up_from=step.up_from,
        into=step.down_into if step.relevance_into is not None and _lies_by_heads(operands) else None,
    )  # fmt: skip


@dataclass(frozen=True)
class _AttentionStep:
    """The step's functions, which take the arriving register and the slots ``share, output, log_sum, *operands.slots``.

    Attributes:
        relevance: the operation, of all operands or of the value alone. relevance_into: the same into given memory,
            None where no backend has it. upward: the way up of both.
    """

    operands: Operands
    sharing: Sharing
    relevance: Callable[..., Any]
    relevance_into: Callable[..., Any] | None
    upward: Callable[..., Tensor]

    @property
    def uniform(self) -> bool:
        """Whether queries and keys take a share too."""
        return self.sharing.shares is not None

    @property
    def shares(self) -> tuple[float, float, float]:
        return self.sharing.shares or (0.0, 0.0, 1.0)

    @property
    def targets(self) -> tuple[Value, ...]:
        """The operands that get relevance: queries, keys and values, or the values alone."""
        return self.operands.values if self.uniform else self.operands.values[2:]

    @property
    def numbers(self) -> tuple[bool, float, float]:
        return self.operands.causal, self.operands.scale, self.operands.cap

    def down(
        self, f: Tensor, share: Tensor | None, output: Tensor, log_sum: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        """Relevance per unit of each target."""
        operands, numbers, epsilon = self.operands, self.numbers, self.sharing.epsilon
        g = operands.wide(f if share is None else multiply(f, share))
        q, k, v, mask = operands.of(tensors)
        mask, log_sum = told_apart(q, k, mask, *numbers, log_sum, g)
        found: tuple[Tensor, ...]
        if self.uniform:
            o = heads_in_one_axis(output)
            found = self.relevance(g, q, k, v, o, log_sum, mask, *numbers, *self.shares, epsilon)
            found = found[0], operands.key_rows(found[1]), found[2]
        else:
            found = (self.relevance(g, q, k, log_sum, mask, *numbers),)
        return tuple(c.reshape(*f.shape[:2], *x.sizes) for c, x in zip(found, self.targets, strict=True))

    def down_into(
        self, rooms: Rooms, times: Sequence[float], f: Tensor, share: Tensor | None, output: Tensor, log_sum: Tensor,
        *tensors: Tensor,
    ) -> Any:  # fmt: skip
        """The same, written to where the step below reads it."""

        def write(times: Sequence[float], c_q: Tensor, c_k: Tensor, c_v: Tensor, g: Tensor, *rest: Any) -> None:
            q, k, v, output, log_sum, mask = rest
            mask, log_sum = told_apart(q, k, mask, *self.numbers, log_sum, g)
            assert self.relevance_into is not None
            own = [share * number for share, number in zip(self.shares, times, strict=True)]
            self.relevance_into(
                c_q, c_k, c_v, g, q, k, v, output, log_sum, mask, *self.numbers, *own, self.sharing.epsilon
            )

        g = f if share is None else multiply(f, share)
        q, k, v, mask = self.operands.apart(tensors)
        return write_results(rooms, times, g, (q, k, v, output), log_sum, mask, self.operands.key_rows, write)

    def up(self, *given: Any) -> Tensor:
        """The transpose of :meth:`down`: cotangents of the targets, then the slots."""
        found = self.up_from(None, *given)
        assert found is not None
        return found

    def up_from(self, first: int | None, *given: Any) -> Tensor | None:
        """The same from a position on, before which all cotangents are zero; None without causal order."""
        operands, count = self.operands, len(self.targets)
        arriving, (share, output, log_sum, *tensors) = given[:count], given[count:]
        if self.uniform and arriving[1] is not None:
            arriving = arriving[0], operands.key_rows(arriving[1]), arriving[2]
        wide = [None if t is None else operands.wide(t) for t in arriving]
        q, k, v, mask = operands.of(tuple(tensors))
        if first is not None:
            causal = operands.causal or hides_later(mask, q.shape[2], k.shape[2])
            if not causal or q.shape[2] != k.shape[2]:
                return None
        mask, log_sum = told_apart(q, k, mask, *self.numbers, log_sum, None)
        each = (wide[0], wide[1], wide[2]) if self.uniform else (None, None, wide[0])
        fixed = q, k, v, heads_in_one_axis(output), log_sum
        if first is None:
            found = self.upward(*fixed, *each, mask, *self.numbers, *self.shares, self.sharing.epsilon)
        else:  # Under causal order and on a CPU alone.
            found = attention_up(each, *fixed, mask, *self.numbers, self.shares, self.sharing.epsilon, first)
        found = found.reshape(*found.shape[:2], *operands.output.sizes[:-2], *found.shape[-2:])
        if share is None:
            return found
        return multiply(found, share if first is None else share.narrow(-2, first, found.shape[-2]))


def _lies_by_heads(operands: Operands) -> bool:
    """Whether the heads are one axis, or the second of two that query, key and value have."""
    axes = [value.sizes[:-2] for value in operands.values]
    return len(axes[0]) < 2 or (len(axes[0]) == 2 and len(set(axes)) == 1)
