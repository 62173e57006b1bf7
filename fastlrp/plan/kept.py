"""Which slots a forward pass leaves: what relevance is multiplied with, or that from which it can be computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import torch

from fastlrp.capture.graph import Graph
from fastlrp.plan.steps import ForwardStep, Program

Keep = Literal["coefficients", "activations", "all"]
"""What a forward pass leaves in its slots: what relevance is multiplied with; or only the activations from which that
can be computed; or both, and all from which the coefficients of other rules can be."""


def kept_slots(
    graph: Graph, program: Program, dtype: torch.dtype, coefficients: frozenset[int], keep: Keep
) -> frozenset[int]:
    """The slots that ``keep`` names. ``coefficients``: those that the way down to the inputs reads."""
    always = frozenset(v.index for v in graph.outputs) | frozenset(program.inputs)
    if keep == "coefficients":
        return always | coefficients
    steps = [step for step in program.steps_to(coefficients, frozenset(program.inputs)) if step.is_cache]
    made = {slot for step in program.forward if step.is_cache for slot in step.outs}
    small = set() if keep == "all" else _small(graph, program, dtype, steps, always | coefficients)
    read = coefficients.union(slot for step in steps if step not in small for slot in step.ins)
    own = {slot for step in small for slot in step.outs if slot in read}
    activations = always | (read - made) | own
    return activations if keep == "activations" else activations | coefficients | frozenset(program.keyed.values())


def _small(
    graph: Graph, program: Program, dtype: torch.dtype, caches: Sequence[ForwardStep], kept: frozenset[int]
) -> set[ForwardStep]:
    """Caches smaller than what they alone are made of: one number of a norm's row, a slope ``act(u) / u``."""
    values = [v for v in (*graph.inputs, *(node.output for node in graph.nodes)) if v.is_tensor and v.has_batch_first]
    sizes = {v.index: v.numel * (v.dtype or dtype).itemsize for v in values if v.index not in kept}
    read = Counter(slot for step in caches for slot in set(step.ins))
    found = set()
    for step in caches:
        alone = sum(sizes.get(slot, 0) for slot in set(step.ins) if read[slot] == 1)
        if sum(program.slot_bytes.get(slot, 0) for slot in step.outs) < alone:
            found.add(step)
    return found
