"""One small call of every kernel of ours, each in a process of its own: what to run first on a GPU.

    python -m tests.gpu.smoke --output rows.jsonl            # on a GPU
    python -m tests.gpu.smoke --rehearse                     # on the CPU: Triton's interpreter, the emulator of CUDA
    python -m tests.gpu.smoke --only attention_up --at-once 1
    python -m tests.gpu.smoke --compile                      # no GPU: fills Triton's cache with kernels for 9.0

Results are compared with the definition, which computes on the CPU. float32 comes first, then products of living
neurons, then TF32 and 16 bits, then small models. A case that hangs or loses the device is killed and loses nothing of
the others; a row is written as soon as each is over. Ends with 1 if any was not right.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # Read when the modules below are first imported.
    REHEARSES, COMPILES = (word in sys.argv[1:] for word in ("--rehearse", "--compile"))
    if REHEARSES or COMPILES:
        os.environ |= {"FASTLRP_GPU_TESTS_ON": "cpu", "OMP_NUM_THREADS": "1"}
        os.environ["TRITON_INTERPRET"] = "1" if REHEARSES else "0"

import torch

from benchmarks import precisions
from benchmarks.gpu import absent, isolated
from benchmarks.gpu.isolated import Case, Outcome, UnableError
from benchmarks.gpu.part import Part, no_gpu
from fastlrp.backends import dispatch
from tests.gpu import rehearsal, smoke_models, smoke_sparse, smoke_tiles
from tests.gpu.cases import DEVICE, OWN, cast, relative, samples
from tests.ops.cases import reference

LIMITS = {"float32": 1e-5, "tf32": 2e-3, "bfloat16": 2e-2, "float16": 4e-3}
"""The largest relative error. One rounding of the result, and what a few dozen products of rounded numbers lose."""

PRODUCTS = ("linear", "conv", "input", "attention", "recurrence")
"""Stems whose kernels multiply matrices."""

SAMPLES = samples()


def operation(number: int, backend: str, name: str) -> str:
    """One call of an operation."""
    op, arguments = SAMPLES[number]
    dtype = precisions.PRECISIONS[name].dtype
    reason = dispatch.reason(backend, op, DEVICE, dtype)
    if reason is not None:
        raise UnableError(reason)
    given = cast(arguments, dtype)
    expected = reference(op)(*cast(given, torch.float64))
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # With NaN: an element that nobody writes shows.
    with precisions.using(name):
        got = dispatch.select(op, backend, DEVICE, dtype).call(*cast(given, dtype, DEVICE))
        error = relative(got, expected)
    assert error <= LIMITS[name], f"off by {error:.3g}, at most {LIMITS[name]:g}"
    return f"off by {error:.1e}"


def _has(backend: str, op: str) -> bool:
    """Whether it is meant to have a kernel: that it is loaded is for the case to find out."""
    if backend == "triton":
        return op != "elementwise_pooled_coefficients"  # With the pool in one sweep: CUDA's alone.
    return dispatch.STEMS[op] in ("pool", "elementwise", "input_rules")


def operations(names: Sequence[str]) -> Iterator[tuple[str, Callable[[], Any]]]:
    for name in names:
        for number, (op, _) in enumerate(SAMPLES):
            if name == "tf32" and not dispatch.STEMS[op].startswith(PRODUCTS):
                continue
            for backend in OWN:
                if _has(backend, op):
                    yield f"{backend} {op} {number} {name}", partial(operation, number, backend, name)


def device() -> str:
    """PyTorch's own kernels run."""
    assert torch.ones(1000, device=DEVICE).sum().item() == 1000
    return torch.cuda.get_device_name() if DEVICE.type == "cuda" else "the CPU"


def all_cases() -> list[Case]:
    """In the order of their worth."""
    groups = (
        [("device", device)],
        operations(["float32"]), operations(["tf32"]), smoke_sparse.cases(), operations(["bfloat16"]),
        smoke_models.cases(), smoke_tiles.cases(),
    )  # fmt: skip
    return [Case(name, prepared(run)) for group in groups for name, run in group]


def prepared(run: Callable[[], Any]) -> Callable[[], Any]:
    """Waits for the device, so that its error is this case's."""

    def case() -> Any:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        if DEVICE.type == "cuda":
            reason = no_gpu()
            assert reason is None, reason
        with precisions.using("float32"):  # If the case does not say otherwise.
            said = run()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        return said

    return case


def compiling(run: Callable[[], Any]) -> Callable[[], Any]:
    """What nobody computes is not right; that kernels compile and fit is."""

    def case() -> Any:
        with suppress(AssertionError):
            run()

    return case


def load() -> None:
    """Import what the cases would import each for itself. Nothing here may touch the device: see ``isolated``."""
    for op, stem in dispatch.STEMS.items():
        importlib.import_module(f"fastlrp.reference.{stem}")
        for name in ("torch", "triton"):
            if dispatch.BACKEND[name].has(op):
                dispatch.BACKEND[name].load(op)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, append."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--output", default="", help="file to append rows to")
    words.add_argument("--seconds", type=float, default=float("inf"), help="begin nothing new after so long")
    words.add_argument("--limit", type=float, default=60.0, help="seconds that a case may take")
    words.add_argument("--at-once", type=int, default=max(1, (os.cpu_count() or 2) - 2), help="cases side by side")
    words.add_argument("--only", default="", help="cases whose name has this in it")
    words.add_argument("--rehearse", action="store_true", help="on the CPU")
    words.add_argument("--compile", action="store_true", help="only compile Triton's kernels, for an absent GPU")
    options = words.parse_args(arguments)
    if options.rehearse or options.compile:
        options.limit = max(options.limit, 600.0)  # Interpreted, on a machine with other things to do.
    if options.rehearse:
        rehearsal.take_its_place()
    elif options.compile:
        absent.take_its_place()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # Takes the cases that run along.
    os.environ["CUDA_LAUNCH_BLOCKING"] = "1"  # An error names the place that made it.
    load()
    assert not torch.cuda.is_initialized(), "a process that has used CUDA cannot be forked"
    cases = [case for case in all_cases() if options.only in case.name]
    if options.compile:
        cases = [Case(case.name, compiling(case.run)) for case in cases if case.name.startswith("triton ")]
    part = Part(
        "smoke", DEVICE, {"device": str(DEVICE)}, Path(options.output) if options.output else None, options.seconds
    )
    count: dict[str, int] = {}
    for outcome in isolated.outcomes(cases, options.at_once, options.limit, options.seconds):
        count[outcome.result] = count.get(outcome.result, 0) + 1
        note(part, outcome)
    part.say(f"{len(cases)} cases: " + ", ".join(f"{n} {result}" for result, n in sorted(count.items())))
    return part.code()


def note(part: Part, outcome: Outcome) -> None:
    """A row, and a line for what was not right."""
    row = {"what": outcome.name, "result": outcome.result, "seconds": round(outcome.seconds, 2), "said": outcome.said}
    part.write([row])
    if outcome.result in isolated.BAD:
        part.wrong.append(f"{outcome.name}: {outcome.result}, {outcome.said[:300]}")
        part.say(f"{outcome.name}: {outcome.result} after {outcome.seconds:.1f} s: {outcome.said[:300]}")


if __name__ == "__main__":
    raise SystemExit(main())
