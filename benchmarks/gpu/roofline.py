"""What the device can do at most, measured: operations per second of a matrix product, bytes per second of a copy.

    python -m benchmarks.gpu.roofline --output rows.jsonl

Random data; the best of several. The floor of every layer of both models stands beside: what cuDNN or cuBLAS reach for
its product with the transposed weight, and by which call.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from benchmarks import floors, models, precisions
from benchmarks.gpu.part import Part, Row, begin, listed, parser
from benchmarks.gpu.timing import Timer, in_turns
from benchmarks.precisions import PRECISIONS

MATRIX, TINY_MATRIX = 8192, 256
COPIED, TINY_COPIED = 4 << 30, 1 << 20


@dataclass
class Peaks:
    """Measured limits. ``flops``: per second by precision; ``bytes``: per second, read and written both counted."""

    flops: dict[str, float] = field(default_factory=dict)
    bytes: float = 0.0

    def seconds(self, precision: str, flops: float, moved: float) -> float:
        """What work takes at least: the longer of computing and moving."""
        return max(flops / self.flops[precision], moved / self.bytes)


def measure(device: torch.device, names: Sequence[str], timer: Timer, tiny: bool = False) -> Peaks:
    """Both limits, products in each of these precisions."""
    peaks = Peaks()
    side, size = (TINY_MATRIX, TINY_COPIED) if tiny else (MATRIX, COPIED)
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    peaks.bytes = 2 * size / best(lambda: target.copy_(source), timer)
    source = target = torch.empty(0, dtype=torch.uint8)
    for name in names:
        with precisions.using(name) as found:
            a, b = (torch.randn(side, side, device=device).to(found.dtype) for _ in range(2))
            out = torch.empty_like(a)
            peaks.flops[name] = 2 * side**3 / best(lambda: torch.mm(a, b, out=out), timer)  # noqa: B023
    return peaks


def best(run: object, timer: Timer) -> float:
    """Shortest time of a run."""
    assert callable(run)
    for _ in range(3):
        run()
    return min(in_turns({"": run}, timer, least=5, most=20)[""].seconds)


def layers(part: Part, model: str, name: str, targets: int, peaks: Peaks, timer: Timer, size: int) -> list[Row]:
    """The floor, layer by layer."""
    with precisions.using(name) as found:
        network, x = models.build(model, size=size, device=part.device)
        ready = floors.products(network.to(found.dtype), x.to(found.dtype), targets)
        rows: list[Row] = []
        for product in ready:
            product.run()
            seconds = in_turns({"": product.run}, timer, least=3, most=10, budget=0.2)[""].median
            rows.append(
                {
                    "what": "floor", "model": model, "precision": name, "targets": targets, "size": size,
                    "layer": product.layer.name, "way": product.way, "shape": list(product.layer.module.weight.shape),
                    "seconds": seconds, "flops": product.flops, "of_peak_flops": product.flops / seconds
                    / peaks.flops[name],
                }
            )  # fmt: skip
    total: float = sum(row["seconds"] for row in rows)
    part.say(f"floor of {model}, {name}, K = {targets}: {total * 1e3:.2f} ms, {total / targets * 1e6:.1f} us/target")
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, append."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    words = parser(__doc__)
    words.add_argument("--precisions", type=listed, default=tuple(PRECISIONS))
    words.add_argument("--models", type=listed, default=("vgg16", "resnet50"))
    words.add_argument("--floor-precisions", type=listed, default=("tf32", "bfloat16"))
    words.add_argument("--targets", type=int, default=256)
    options = words.parse_args(given)
    part = begin("roofline", options, given)
    timer = Timer(part.device)
    names = tuple(dict.fromkeys((*options.precisions, *options.floor_precisions)))
    peaks = measure(part.device, names, timer, options.tiny)
    part.write([{"what": "copy", "bytes_per_second": peaks.bytes}])
    part.say(f"copy: {peaks.bytes / 1e12:.3f} TB/s, read and written")
    for name, rate in peaks.flops.items():
        part.write([{"what": "product", "precision": name, "flops_per_second": rate}])
        part.say(f"product, {name}: {rate / 1e12:.1f} TFLOP/s")
    for model in options.models:
        for name in options.floor_precisions:
            if not part.is_late(f"floor of {model}, {name}"):
                size, targets = (32, 2) if options.tiny else (224, options.targets)
                part.write(layers(part, model, name, targets, peaks, timer, size))
    return part.code()


if __name__ == "__main__":
    raise SystemExit(main())
