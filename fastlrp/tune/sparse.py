"""Measures what the choice between dense and sparse needs: ``python -m fastlrp.tune.sparse``.

All ways through one layer, in turns, after a check that they agree; medians. With ``--device cpu`` in a second or two
on one core, in float32 and bfloat16.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import torch
from torch import Tensor

from fastlrp.backends.dispatch import select, sparse_kernels
from fastlrp.plan.compact import Compact, Pattern
from fastlrp.plan.forms import Affine
from fastlrp.plan.geometry import ConvGeometry
from fastlrp.plan.paths.rates import Rates, bf16_unit, cpu_name, own_path, write
from fastlrp.plan.products import reduced

Timer = Callable[[Callable[[], object]], float]
"""Seconds of one run."""


@dataclass(frozen=True)
class Shape:
    """A 3x3 convolution of ``channels`` to ``channels`` on a square map, and how many targets."""

    channels: int = 256
    size: int = 28
    targets: int = 128


class Sample:
    """One layer with dead neurons, computed both ways; ``alive``: share of the neurons that carry relevance."""

    def __init__(self, shape: Shape, alive: float, device: torch.device, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(0)
        c, n = shape.channels, shape.size

        def random(*size: int) -> Tensor:
            return torch.randn(size, generator=generator).to(device, dtype)

        self.shape, self.device, self.dtype = shape, device, dtype
        self.weight = random(c, c, 3, 3).contiguous(memory_format=torch.channels_last)
        mask = (torch.rand(2, 1, c, n, n, generator=generator) < alive).to(device, dtype)
        self.u = (random(1, c, n, n) * mask[0]).contiguous(memory_format=torch.channels_last)
        self.wanted = mask[1]
        flow = random(1, shape.targets, n, n, c).movedim(-1, 2)
        self.flow = flow
        geometry = ConvGeometry([1, 1], [1, 1], [1, 1], False, [0, 0], 1)
        work = 2 * 9 * c * c * n * n
        self.form = Affine((self.weight,), (0,), (False,), None, None, geometry, (c, n, n), (c, n, n), work, "sample")
        self.above, self.below = Pattern.of(self.u), Pattern.of(self.wanted)
        self.compact = Compact.of(flow, self.above)
        self.geometry = ([n, n], *geometry.arguments, False, False)

    def dense(self) -> Tensor:
        call = select("conv_relevance", "auto", self.device, self.dtype).call
        result: Tensor = call(self.flow, self.weight, self.u, None, None, None, *self.geometry)
        return result

    def sparse(self) -> Compact:
        found = self.form.relevance_at(self.compact, {0: self.u}, self.below, dense=False)
        assert isinstance(found, Compact)
        return found

    def narrow_dense(self) -> Tensor:
        """With operands of bfloat16."""
        product = reduced.through_conv(self.turned, None, *self.turned_geometry, False, False)
        return product(self.flow, self.u, None, False)

    def narrow_sparse(self) -> Compact:
        found = self.form.relevance_at(self.compact, {0: self.u}, self.below, dense=False, narrow=True)
        assert isinstance(found, Compact)
        return found

    def half(self) -> object:
        """For one vector of targets."""
        return self.form.relevance_at(self.few, {0: self.u}, self.below, dense=False)

    def narrow_half(self) -> object:
        return self.form.relevance_at(self.few, {0: self.u}, self.below, dense=False, narrow=True)

    @cached_property
    def few(self) -> Compact:
        return self.compact.narrow(1, 0, min(self.shape.targets, Rates.lanes))

    @cached_property
    def turned(self) -> Tensor:
        found = reduced.turned_weight(self.weight, 1).to(reduced.DTYPE)
        return found.contiguous(memory_format=torch.channels_last)

    @cached_property
    def turned_geometry(self) -> tuple[list[int], ConvGeometry]:
        found = reduced.turned(self.form.geometry, (3, 3))
        assert found is not None
        return [self.shape.size] * 2, found

    def error(self, narrow: bool = False) -> float:
        """Relative difference of both ways, where both have a value."""
        dense, sparse = (self.narrow_dense, self.narrow_sparse) if narrow else (self.dense, self.sparse)
        expected = (dense() * self.wanted.unsqueeze(1)).double()
        return float((sparse().dense().double() - expected).norm() / expected.norm().clamp(min=1e-30))

    @property
    def operations(self) -> tuple[float, float]:
        """Of the dense product, and for alive neurons alone."""
        dense = float(self.form.work * self.shape.targets)
        return dense, dense * self.above.density * self.below.density


TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Both ways may round to tf32 or 16 bits; what is wrong is wrong by more."""


def measure(
    device: torch.device, dtype: torch.dtype, timer: Timer, shape: Shape | None = None, rounds: int = 5
) -> Rates:
    """Rates of a device, both ways in turns.

    Raises:
        RuntimeError: if both ways disagree: a speed of wrong numbers is none.
    """
    shape = Shape() if shape is None else shape
    samples = [Sample(shape, alive, device, dtype) for alive in (0.5, 0.25)]
    for sample in samples:
        error = sample.error()
        if not error <= TOLERANCE[dtype]:
            raise RuntimeError(f"the sparse way differs from the dense one by {error:.2g}: nothing was measured")
    flow = samples[0].flow
    copied = torch.empty_like(flow)
    runs: list[Callable[[], object]] = [lambda: copied.copy_(flow)]
    for sample in samples:
        runs += [sample.dense, sample.sparse]
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for times, run in zip(seconds, runs, strict=True):
            times.append(timer(run))
    copy, *others = (statistics.median(times) for times in seconds)
    pairs = list(zip(samples, others[::2], others[1::2], strict=True))
    dense = statistics.mean(sample.operations[0] / taken for sample, taken, _ in pairs)
    sparse = statistics.mean(sample.operations[1] / taken for sample, _, taken in pairs)
    lanes = 64 if device.type == "cuda" else Rates.lanes
    call = 1e-12 if device.type == "cuda" else Rates.call
    half = sparse * Rates.half_filled / Rates.sparse
    return Rates(dense, sparse, half, 2 * flow.nbytes / copy, call, lanes)


def measure_cpu(timer: Timer, shape: Shape | None = None, rounds: int = 3) -> Rates:
    """Rates of one core, in float32 and with products of bfloat16.

    Raises:
        RuntimeError: as :func:`measure`.
    """
    shape = Shape(channels=128, targets=32) if shape is None else shape
    device = torch.device("cpu")
    plain = measure(device, torch.float32, timer, shape, rounds)
    sample = Sample(shape, 0.3, device, torch.float32)
    error = sample.error(narrow=True)
    if not error <= TOLERANCE[torch.bfloat16]:
        raise RuntimeError(
            f"the sparse way of bfloat16 differs from the dense one by {error:.2g}: nothing was measured"
        )
    ways: list[Callable[[], object]] = [
        sample.dense, sample.sparse, sample.half, sample.narrow_dense, sample.narrow_sparse, sample.narrow_half
    ]  # fmt: skip
    for way in ways:
        way()
    seconds = [[timer(way) for way in ways] for _ in range(rounds)]
    dense, sparse, half, narrow_dense, narrow_sparse, narrow_half = map(min, zip(*seconds, strict=True))
    alive, few = sample.operations[1], sample.few.count / shape.targets
    return replace(
        plain, reduced=dense / narrow_dense, sparse_reduced=plain.sparse * sparse / narrow_sparse,
        half_filled=alive * few / half, half_reduced=alive * few / narrow_half,
    )  # fmt: skip


def core_timer(run: Callable[[], object]) -> float:
    """Of this thread, whatever else the processor does."""
    begin = time.thread_time()
    run()
    return time.thread_time() - begin


def gpu_timer(run: Callable[[], object]) -> float:
    """By the device's own clock."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write unless ``--dry-run``."""
    parser = argparse.ArgumentParser(prog="python -m fastlrp.tune.sparse", description=__doc__)
    parser.add_argument("--device", default="cuda", help="a CUDA device (cuda, cuda:1) or cpu")
    parser.add_argument("--targets", type=int, default=Shape.targets, help="of a GPU")
    parser.add_argument("--dry-run", action="store_true", help="print the rates, write nothing")
    given = parser.parse_args(argv)
    device = torch.device(given.device)
    missing = why_not(device)
    if missing is not None:
        print(f"nothing can be measured on {device}: {missing}", file=sys.stderr)
        return 2
    if device.type == "cpu":
        name, rates = cpu_name(bf16_unit()), _on_one_core()
    else:
        name = torch.cuda.get_device_name(device)
        rates = measure(device, torch.float32, gpu_timer, Shape(targets=given.targets))
    for field in fields(Rates):
        print(f"{field.name:<14} {getattr(rates, field.name):.4g}")
    if not given.dry_run:
        measured = {"device": name, "torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}
        write(own_path(name), rates, measured)
        print(f"written to {own_path(name)}")
    return 0


def _on_one_core() -> Rates:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return measure_cpu(core_timer)
    finally:
        torch.set_num_threads(threads)


def why_not(device: torch.device) -> str | None:
    """Why there is nothing to measure, or None."""
    if device.type == "cpu":
        if sparse_kernels(device) is None:
            return "the compiled extension does not load; python -m fastlrp.info says why"
        kinds = "it has neither AMX nor AVX512-BF16: it stays with the rates that are shipped"
        return kinds if bf16_unit().startswith("software") else None
    if device.type != "cuda":
        return "only GPUs and CPUs are measured"
    if not torch.cuda.is_available():
        return "PyTorch sees no CUDA device"
    return None if sparse_kernels(device) is not None else "csrc/cuda is not built; python -m fastlrp.info says why"


if __name__ == "__main__":
    sys.exit(main())
