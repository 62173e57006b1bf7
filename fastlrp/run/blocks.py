"""How many targets a step takes at once, where blocks of them come together again, and how much memory that needs.

All of it follows from the steps: :mod:`fastlrp.run.descent` asks while it executes them, a budget of memory before.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fastlrp.plan.steps import BLOCK, LANES, BackwardStep, Emission, Steps

NEARLY = 4 / 3
"""By how much a register may be larger than ``block_bytes`` where its smaller blocks would have to come together again:
to 32 MiB on a CPU, the largest buffers that the C library keeps."""


def fitting(step: BackwardStep, batch: int, itemsize: int, block_bytes: int, numel: int | None = None) -> int:
    """How many targets at once keep a step's register within ``block_bytes``, at least as many as it takes at once.

    ``numel``: entries of the register, if they are fewer than the step's own.
    """
    fits = block_bytes // max(1, (step.numel if numel is None else numel) * max(1, batch) * itemsize)
    return max(1, step.least, fits // BLOCK * BLOCK if fits >= BLOCK else fits)


def even(count: int, fits: int) -> int:
    """Size of about equal blocks of at most ``fits``, whole :data:`fastlrp.plan.steps.BLOCK` where that is possible."""
    size = -(-count // -(-count // fits))
    return min(fits, -(-size // BLOCK) * BLOCK)


def next_sparse(steps: Steps, position: int) -> int | None:
    """Where the first sparse step below the step at ``position`` stands; None if that is sparse, or none follows.

    Sparse kernels compute as many targets as a vector has lanes in the time of one, so that a sparse step is better
    given all targets at once than the smaller blocks of the dense steps above it.
    """
    for place in range(position, len(steps)):
        step = steps[place][0]
        if type(step) is not Emission and step.least > 1 and step.ins != step.outs:  # Not a change of form.
            return place if place > position else None
    return None


@dataclass
class _Met:
    """Where blocks meet, what holds there (targets, bytes outside, the peak so far), and registers that they write."""

    position: int | None = None
    count: int = 0
    outside: int = 0
    peak: int = 0
    written: set[int] = field(default_factory=set)


def peak_bytes(
    steps: Steps, sizes: dict[int, int], batch: int, count: int, itemsize: int, block_bytes: int,
    hot: dict[int, int] | None = None,
) -> int:  # fmt: skip
    """Bytes that ``count`` targets need at once on their way down, results not included.

    ``sizes``: entries per sample and target of the registers that exist at the start. ``hot``: of those of them that
    are one-hot, what this takes in their place; they are made dense where they are asked for.
    """
    live, dense, hot = set(sizes), dict(sizes), dict(hot or {})
    sizes = {**sizes, **hot}
    peak = outside = 0  # Outside: what larger blocks hold while their smaller ones go down.
    entries, met = dict(sizes), _Met()
    for position, (step, frees) in enumerate(steps):
        if position == met.position:  # One block's rows beside what all blocks leave.
            count, outside = met.count, met.outside
            sizes.update((r, entries[r]) for r in live & met.written)
            peak = max(met.peak, peak + sum(sizes[r] for r in live) * batch * itemsize * count)
            met = _Met()
        unit = batch * itemsize * count
        held = outside + sum(sizes[r] for r in live) * unit
        if type(step) is Emission:
            peak = max(peak, held + dense.get(step.register, sizes[step.register]) * unit)
        elif step.keeps_one_hot and step.ins[0] in hot:
            live.update(step.outs)
            sizes[step.out] = entries[step.out] = hot[step.out] = hot[step.ins[0]]
            dense[step.out] = step.numel
            peak = max(peak, held + 2 * hot[step.out] * unit)
        else:
            fits = fitting(step, batch, itemsize, block_bytes)
            meeting = next_sparse(steps, position) if fits < count else None
            is_near = meeting is not None and step.numel * unit <= NEARLY * block_bytes
            if fits < count and not is_near:
                if met.position is None and meeting is not None:
                    met, peak = _Met(meeting, count, outside, peak), 0
                count, outside = even(count, fits), held
                unit = batch * itemsize * count
                held = outside + sum(sizes[r] for r in live) * unit
            live.update(step.outs)
            met.written.update(step.outs)
            entries.update(zip(step.outs, step.numels, strict=True))
            if step.least > 1:  # Sparse: rows are padded, and nothing is made but the result.
                sizes[step.out] = -(-step.numel * (-(-count // LANES) * LANES) // count)
                peak = max(peak, held + sizes[step.out] * unit)
            else:
                # A step makes its scaled operand, once more in another layout, and up to three parts of its result.
                sizes.update(zip(step.outs, step.numels, strict=True))
                made = 2 * step.numel + sum(step.numels)
                peak = max(peak, held + (made + 2 * max(sizes[r] for r in step.ins)) * unit)
        live.difference_update(frees)
    return max(peak, met.peak)
