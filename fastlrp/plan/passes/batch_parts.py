"""How many samples of a batch go through the forward steps at once where maps are large.

On a CPU a map of more than 32 MiB is memory that the C library takes from the system anew at each step, page by page,
and it leaves the cache before the next step reads it. So the steps that make such maps take a part of the batch after
the other, as long as what they read of weights again costs less. VGG-16, eight images of 224x224, one target each:
3.65 s of processor time and 279,000 page faults for all of them at once, 3.19 s and 22,000 image by image (AMD EPYC,
one thread); linear layers, whose weights are large, still see all samples. How many samples there are (``x.shape[0]``)
may be read by these steps to say how many a result has, ``x.view(x.shape[0], -1)``, and for nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fastlrp.capture.graph import Graph, Node, Value, leaves
from fastlrp.plan.layer import work_of
from fastlrp.plan.schedule import Schedule
from fastlrp.plan.steps import ForwardStep, Program

MAPPED_ANEW = 32 << 20
"""Bytes from which on the C library gives memory back to the system after each use. With maps of 25 MB (ResNet-50,
eight images) parts were 3 % slower than the whole batch."""

SECONDS_PER_BYTE = 2.5e-6 / 4096
"""What a map's memory costs that is mapped anew: 2.5 microseconds per page (AMD EPYC)."""

READ = 12e9
"""Bytes of a weight that one core reads in a second."""

COMPUTE = 200e9
"""Floating-point operations that one core makes in a second, while the weight that it reads costs nothing more."""


_RESULT_OF_SIZES = {
    **dict.fromkeys(("view", "reshape", "_unsafe_view", "expand", "new_zeros", "new_ones", "new_full"), 1),
    **dict.fromkeys(("zeros", "ones", "full"), 0),
}
"""Operations that are told the sizes of their result, and which of their arguments has them."""


@dataclass(frozen=True)
class BatchParts:
    """The first ``end`` forward steps take ``size`` samples after the other; all others take the whole batch.

    ``counts``: slots of the number of samples, of which each part has its own.
    """

    end: int
    size: int
    counts: tuple[int, ...] = ()

    def runs(self, batch: int) -> list[tuple[int, int]]:
        """The first sample and the number of samples of each part: about equal parts."""
        count = -(-batch // self.size)
        each = -(-batch // count)
        return [(start, min(each, batch - start)) for start in range(0, batch, each)]


def batch_parts(
    graph: Graph, program: Program, schedule: Schedule, batch: int, dtype: torch.dtype, limit: int
) -> BatchParts | None:
    """How the forward steps of a schedule go through a batch in parts; None where all of it goes at once.

    Args:
        dtype: of what the plan computes. limit: bytes that the largest map of a part should have at most.
    """
    steps = [step for step, _ in schedule.steps]
    values = [*graph.inputs, *(node.output for node in graph.nodes)]
    each = {v.index: v.numel * (v.dtype or dtype).itemsize for v in values if v.is_tensor and v.has_batch_first}
    each |= program.slot_bytes
    output = graph.output.index  # It is put together in any case.
    large = [max((each.get(s, 0) for s in step.ins + step.outs if s != output), default=0) for step in steps]
    end = max((i + 1 for i, size in enumerate(large) if size * batch > MAPPED_ANEW), default=0)
    if batch < 2 or end == 0 or len(graph.outputs) > 1 or not graph.output.has_batch_first:
        return None
    counts = _counts(graph)
    used = {slot for step in steps[:end] for slot in (*step.ins, *step.outs) if slot < graph.values}
    if not used <= each.keys() | counts.keys():
        return None  # Another number, or a value whose batch stands elsewhere.
    counted = tuple(sorted(used & counts.keys()))
    if counted and not _only_say_how_many(counted, counts, steps[:end], program):
        return None
    found = BatchParts(end, max(1, limit // max(large[:end])), counted)
    mapped = sum(each[s] * batch for step in steps[:end] for s in step.outs if each.get(s, 0) * batch > MAPPED_ANEW)
    runs = found.runs(batch)
    again = _read_again(steps[:end], runs[0][1]) * (len(runs) - 1)
    return found if again < mapped * SECONDS_PER_BYTE else None


def _counts(graph: Graph) -> dict[int, Value]:
    """The number of samples by its slot, ``x.shape[0]`` of a value with the batch in front."""
    found = {}
    for node in graph.nodes:
        whole = node.args[0] if node.operation == "sym_size" and node.args[1:] == (0,) else None
        if isinstance(whole, Value) and whole.has_batch_first:
            found[node.output.index] = node.output
    return found


def _only_say_how_many(
    counted: Sequence[int], counts: dict[int, Value], steps: Sequence[ForwardStep], program: Program
) -> bool:
    """Whether the steps read these numbers of samples as the first size of their result alone, and no backward step
    reads them."""
    values = [counts[slot] for slot in counted]
    readers = [step for step in steps if not set(counted).isdisjoint(step.ins)]
    backward = {slot for step in program.backward for slot in step.slots}
    made = {slot for step in steps for slot in step.outs}
    return (
        set(counted) <= made
        and backward.isdisjoint(counted)
        and all(not step.is_cache and step.node is not None and _has_as_size(step.node, values) for step in readers)
    )


def _has_as_size(node: Node, counts: Sequence[Value]) -> bool:
    position = _RESULT_OF_SIZES.get(node.operation)
    if position is None or len(node.args) <= position or not isinstance(node.args[position], (list, tuple)):
        return False
    sizes = node.args[position]
    others = leaves((node.args[:position], sizes[1:], node.args[position + 1 :], node.kwargs))
    return node.output.has_batch_first and sizes[0] in counts and not any(leaf in counts for leaf in others)


def _read_again(steps: Sequence[ForwardStep], size: int) -> float:
    """Seconds that reading all weights takes beyond the products of ``size`` samples, in the forward pass and down."""
    seconds = 0.0
    for step in steps:
        if not step.is_cache and step.node is not None and step.node.kind in ("conv", "linear"):
            weight = step.node.attributes["weight"].tensor()
            seconds += 2 * max(0.0, weight.nbytes / READ - size * work_of(step.node) / COMPUTE)
    return seconds
