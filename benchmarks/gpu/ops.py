"""Every fused operation beside the same operation composed of PyTorch calls, on the calls that real models make.

    python -m benchmarks.gpu.ops --output rows.jsonl --few 3 --targets 128 --precisions tf32,bfloat16

Results first: one target against the definition in float64, then the whole block against the composed operations; who
is farther off than twice PyTorch's own error is not timed. Composed operations are timed in both memory orders, and the
faster counts. Shares are of the peaks that are measured in the same process: operations per second of a large product
in that precision, bytes per second of a large copy.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks import precisions, shapes
from benchmarks.gpu import calls, roofline
from benchmarks.gpu.part import Part, Row, begin, listed, numbers, parser
from benchmarks.gpu.roofline import Peaks
from benchmarks.gpu.timing import Timer, Times, in_turns
from benchmarks.precisions import PRECISIONS
from benchmarks.shapes import Call
from fastlrp.backends import dispatch

COMPOSED = "torch"
FLOOR_OF_ERRORS = 1e-5
"""What float32 promises, of whatever composed operations are off."""

Run = Callable[[], Any]


@dataclass
class Candidate:
    """One backend on one call: its run, or the reason why it is not timed; its error and the most it may be."""

    name: str
    run: Run | None = None
    error: float | None = None
    limit: float | None = None
    reason: str | None = None
    unable: bool = False
    times: Times | None = None


@dataclass(frozen=True)
class Question:
    """A call for a block of targets, in one precision."""

    call: Call
    targets: int
    precision: str
    device: torch.device

    @property
    def dtype(self) -> torch.dtype:
        return PRECISIONS[self.precision].dtype

    def __str__(self) -> str:
        return f"{self.call.op} {self.call} K={self.targets} {self.precision}"

    def bound(self, backend: str) -> Callable[..., Any]:
        """The backend's callable.

        Raises:
            BackendError, ValueError: if there is none.
        """
        selected = dispatch.select(self.call.op, backend, self.device, self.dtype)
        if selected.backend != backend:
            raise dispatch.BackendError(f"{backend} has no kernel of its own, {selected.backend} computes it")
        return selected.call


def candidates(asked: Question, backends: Sequence[str]) -> tuple[list[Candidate], int]:
    """Each backend, checked on one target and on the whole block; bytes that the operation must move at least."""
    one = calls.arguments(asked.call, 1, asked.device, asked.dtype)
    expected = calls.exact(asked.call, one)
    block = calls.arguments(asked.call, asked.targets, asked.device, asked.dtype)
    composed = asked.bound(COMPOSED)
    own = calls.difference(composed(*one), expected)
    whole = composed(*block)
    found = [Candidate(COMPOSED, lambda: composed(*block), own)]
    plain = calls.arguments(asked.call, asked.targets, asked.device, asked.dtype, last=False)
    if asked.call.relevance is not None and plain[0].stride() != block[0].stride():
        found.append(Candidate(f"{COMPOSED}, as the plan has it", lambda: composed(*plain), own))
    limit = max(FLOOR_OF_ERRORS, 2 * own, PRECISIONS[asked.precision].unit)
    for backend in backends:
        found.append(_candidate(asked, backend, one, expected, block, whole, limit, own))
    return found, calls.moved(asked.call, block, whole)


def _candidate(
    asked: Question, backend: str, one: Any, expected: Any, block: Any, whole: Any, limit: float, own: float
) -> Candidate:
    try:
        call = asked.bound(backend)
    except (dispatch.BackendError, ValueError) as reason:
        return Candidate(backend, reason=str(reason), unable=True)
    found = Candidate(backend, lambda: call(*block), limit=limit)
    try:
        found.error = calls.difference(call(*one), expected)
        apart = calls.difference(call(*block), whole)
    except Exception as error:
        found.reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"
        return found
    if not found.error <= limit:
        found.reason = f"it is off by {found.error:.1e}, at most {limit:.1e} is right"
    elif not apart <= limit + own:
        found.reason = f"its block of {asked.targets} targets is {apart:.1e} off the composed operations'"
    return found


def rows(asked: Question, found: list[Candidate], bytes_moved: int, peaks: Peaks) -> list[Row]:
    """What is kept of each: time, ratio to the faster of the composed ways, shares of the peaks."""
    composed = [c.times.median for c in found if c.times is not None and c.name.startswith(COMPOSED)]
    work = calls.flops(asked.call, asked.targets)
    least = peaks.seconds(asked.precision, work, bytes_moved)
    kept = []
    for c in found:
        seconds = c.times.median if c.times else None
        row = {
            "op": asked.call.op, "model": asked.call.model, "call": str(asked.call), "targets": asked.targets,
            "precision": asked.precision, "backend": c.name, "seconds": seconds,
            "spread": c.times.spread if c.times else None, "error": c.error, "limit": c.limit, "reason": c.reason,
            "unable": c.unable, "flops": work, "bytes": bytes_moved, "least_seconds": least,
            "bound_by": "bytes" if work / peaks.flops[asked.precision] < bytes_moved / peaks.bytes else "flops",
        }  # fmt: skip
        if seconds is not None:
            row["times_faster_than_composed"] = min(composed) / seconds if composed else None
            row["of_peak"] = least / seconds
            row["of_peak_flops"] = work / seconds / peaks.flops[asked.precision]
            row["of_peak_bytes"] = bytes_moved / seconds / peaks.bytes
        kept.append(row)
    return kept


def measure(part: Part, asked: Question, backends: Sequence[str], peaks: Peaks, timer: Timer) -> list[Row]:
    """Check everybody, time who is right, write the rows."""
    with precisions.using(asked.precision), torch.no_grad():
        found, bytes_moved = candidates(asked, backends)
        runs = {c.name: c.run for c in found if c.run is not None and c.reason is None}
        for run in runs.values():
            run()
        taken = in_turns(runs, timer)
        for c in found:
            c.times = taken.get(c.name)
        made = rows(asked, found, bytes_moved, peaks)
    part.write(made)
    for c, row in zip(found, made, strict=True):
        if c.reason is not None and not c.unable:
            part.wrong.append(f"{asked}, {c.name}: {c.reason}")
        part.say(f"  {line(row)}")
    return made


def line(row: Row) -> str:
    """A row for people."""
    if row["seconds"] is None:
        return f"{row['backend']:28} not timed: {row['reason']}"
    ratio = row["times_faster_than_composed"]
    return (
        f"{row['backend']:28} {row['seconds'] * 1e3:9.3f} ms (spread {row['spread']:.2f}) "
        f"{'' if ratio is None else f'{ratio:5.2f} times as fast as composed, '}{row['of_peak']:.2f} of the peak "
        f"({row['bound_by']})"
    )


def profile(questions: Sequence[Question], backends: Sequence[str]) -> None:
    """Each call once between the profiler's start and stop, for ``ncu --profile-from-start off``."""
    for asked in questions:
        with precisions.using(asked.precision), torch.no_grad():
            block = calls.arguments(asked.call, asked.targets, asked.device, asked.dtype)
            for backend in backends:
                try:
                    run = asked.bound(backend)
                except (dispatch.BackendError, ValueError):
                    continue
                run(*block)
                torch.cuda.synchronize(asked.device)
                torch.cuda.profiler.start()
                run(*block)
                torch.cuda.synchronize(asked.device)
                torch.cuda.profiler.stop()
                print(f"{asked}, {backend}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, append."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    words = parser(__doc__)
    add = words.add_argument
    add("--models", type=listed, default=("vgg16", "resnet50"))
    add("--ops", type=listed, default=dispatch.OPS)
    add("--backends", type=listed, default=("triton", "cuda"))
    add("--precisions", type=listed, default=("float32", "tf32", "bfloat16", "float16"))
    add("--targets", type=numbers, default=(128, 256))
    add("--few", type=int, help="calls per operation and model: the largest, the smallest, some between")
    add("--profile", action="store_true", help="run each call once for a profiler, and measure nothing")
    options = words.parse_args(given)
    part = begin("ops", options, given)
    size = 32 if options.tiny else 224
    chosen: list[Call] = []
    for model in options.models:
        found = [call for call in calls.heard(model, part.device, size) if call.op in options.ops]
        chosen += found if options.few is None else shapes.few(found, options.few)
    questions = [
        Question(call, targets, name, part.device)
        for name in options.precisions
        for targets in options.targets
        for call in chosen
        if _differs(call, targets, name, options)
    ]
    if options.profile:
        profile(questions, options.backends)
        return 0
    timer = Timer(part.device)
    peaks = roofline.measure(part.device, options.precisions, timer, options.tiny)
    return measured(part, questions, options.backends, peaks, timer)


def _differs(call: Call, targets: int, name: str, options: Any) -> bool:
    """Without targets every K is the same; without products TF32 is float32."""
    if call.relevance is None and targets != options.targets[0]:
        return False
    return not (name == "tf32" and "float32" in options.precisions and calls.flops(call, 1) == 0)


def measured(part: Part, questions: Sequence[Question], backends: Sequence[str], peaks: Peaks, timer: Timer) -> int:
    """All questions while there is time; the exit code."""
    for asked in questions:
        if part.is_late(str(asked)):
            continue
        part.say(str(asked))
        try:
            measure(part, asked, backends, peaks, timer)
        except Exception as error:  # One call that cannot be measured must not lose the others.
            part.wrong.append(f"{asked}: {type(error).__name__}: {str(error)[:200]}")
            if part.is_lost():
                return part.code(lost=True)
        if part.device.type == "cuda":
            torch.cuda.empty_cache()
    return part.code()


if __name__ == "__main__":
    raise SystemExit(main())
