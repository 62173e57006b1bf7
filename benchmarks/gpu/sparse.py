"""The product over living neurons only beside the dense product, at the models' layer shapes.

    python -m benchmarks.gpu.sparse --output rows.jsonl --densities 0.5,0.25,0.12 --targets 128

A random share of the neurons above and below each layer is alive, the same for all targets. Relevance lies compactly
before and after, as it does on its way through a network. Beside it: the fastest dense product with the transposed
weight that cuDNN or cuBLAS have, without coefficients, on a map that lies ready (see ``benchmarks.floors``). Results
first, against the definition and against composed operations.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import floors, models, precision
from benchmarks.floors import Layer
from benchmarks.gpu import calls
from benchmarks.gpu.part import Part, Row, begin, listed, parser
from benchmarks.gpu.timing import Timer, in_turns
from benchmarks.precision import PRECISIONS
from fastlrp.backends import dispatch
from fastlrp.plan.compact import Compact, Pattern
from fastlrp.plan.forms import Affine
from fastlrp.plan.geometry import ConvGeometry

FLOOR_OF_ERRORS = 1e-5


@dataclass(frozen=True)
class Question:
    """One layer at one density, for a block of targets in one precision."""

    model: str
    layer: Layer
    density: float
    targets: int
    precision: str
    device: torch.device

    @property
    def dtype(self) -> torch.dtype:
        return PRECISIONS[self.precision].dtype

    @property
    def geometry(self) -> ConvGeometry:
        """Of the convolution; of a linear layer an empty one."""
        m = self.layer.module
        if isinstance(m, nn.Linear):
            return ConvGeometry()
        return ConvGeometry(list(m.stride), list(m.padding), list(m.dilation), False, [0] * len(m.stride), m.groups)

    def __str__(self) -> str:
        shape = "x".join(map(str, self.layer.module.weight.shape))
        sizes = "x".join(map(str, self.layer.out[1:]))
        return f"{self.model} {shape} -> {sizes} density {self.density:g} K={self.targets} {self.precision}"


@dataclass(frozen=True)
class Case:
    """A question with its numbers: coefficients ``(1, Co, *S')`` with dead neurons, and who is alive below."""

    asked: Question
    weight: Tensor
    u: Tensor
    below: Tensor
    relevance: Tensor

    @staticmethod
    def of(asked: Question) -> Case:
        layer, device, dtype = asked.layer, asked.device, asked.dtype

        def alive(shape: torch.Size) -> Tensor:
            return (torch.rand(1, *shape, device=device) < asked.density).to(dtype)

        weight = layer.module.weight.detach().to(device, dtype)
        u = alive(layer.out) * (torch.rand(1, *layer.out, device=device) + 0.5).to(dtype)
        relevance = torch.randn(1, asked.targets, *layer.out, device=device, dtype=torch.float32).to(dtype)
        return Case(asked, weight, u, alive(layer.size), relevance)

    def dense(self, backend: str, targets: int, upcast: bool = False) -> Tensor:
        """The same by the dense operation, zero where nobody is alive below."""
        change = Tensor.double if upcast else Tensor.clone
        relevance, weight, u = (change(t) for t in (self.relevance[:, :targets], self.weight, self.u))
        geometry, linear = self.asked.geometry, not self.asked.geometry.stride
        op = "linear_relevance" if linear else "conv_relevance"
        call = dispatch.select(op, backend, self.asked.device, relevance.dtype).call
        shape = () if linear else (list(self.asked.layer.size[1:]), *geometry.arguments)
        found: Tensor = call(relevance, weight, u, None, None, None, *shape, False, False)
        return found * self.below.to(found.dtype).unsqueeze(1)

    def sparse(self) -> tuple[Any, Compact, Pattern]:
        """The layer in the terms of the sparse kernels, the relevance that arrives, and who is alive below."""
        linear, layer = not self.asked.geometry.stride, self.asked.layer
        weight = self.weight.unsqueeze(2) if linear else self.weight
        form = Affine(
            (weight,), (0,), (False,), None, None, self.asked.geometry, tuple(layer.out), tuple(layer.size),
            layer.flops, layer.name,
        )  # fmt: skip
        return form, Compact.of(self.relevance, Pattern.of(self.u)), Pattern.of(self.below)


def measure(part: Part, asked: Question, timer: Timer) -> Row:
    """Check, time in turns, write the row."""
    with precision.using(asked.precision), torch.no_grad():
        case = Case.of(asked)
        form, arriving, leaving = case.sparse()
        state = {0: case.u}

        def run() -> Any:
            return form.relevance_at(arriving, state, leaving, False)

        error, limit, reason = check(case, run())
        row: Row = {
            "model": asked.model, "layer": asked.layer.name, "call": str(asked), "targets": asked.targets,
            "precision": asked.precision, "density": asked.density, "above": arriving.pattern.density,
            "below": leaving.density, "error": error, "limit": limit, "reason": reason, "seconds": None,
        }  # fmt: skip
        if reason is None:
            operands = floors.Operands(asked.device, asked.dtype)
            product = floors.fastest(asked.layer, operands, asked.targets)
            product.run()
            taken = in_turns({"dense": product.run, "sparse": run}, timer)
            row["seconds"], row["spread"] = taken["sparse"].median, taken["sparse"].spread
            row["dense_seconds"], row["dense_way"] = taken["dense"].median, product.way
            row["times_faster_than_dense"] = taken["dense"].median / taken["sparse"].median
    part.write([row])
    if reason is not None:
        part.wrong.append(f"{asked}: {reason}")
    part.say(f"{asked}: {line(row)}")
    return row


def check(case: Case, found: Compact) -> tuple[float, float, str | None]:
    """Error of one target, the most that it may be, and what is wrong with it or with the block."""
    got = found.dense()
    expected, composed = case.dense("reference", 1, upcast=True), case.dense("torch", case.asked.targets)
    own = calls.difference(composed[:, :1], expected)
    limit = max(FLOOR_OF_ERRORS, 2 * own, PRECISIONS[case.asked.precision].unit)
    error = calls.difference(got[:, :1], expected)
    if not error <= limit:
        return error, limit, f"it is off by {error:.1e}, at most {limit:.1e} is right"
    apart = calls.difference(got, composed)
    if not apart <= limit + own:
        return error, limit, f"its block of {case.asked.targets} targets is {apart:.1e} off the composed operations'"
    return error, limit, None


def line(row: Row) -> str:
    """A row for people."""
    if row["seconds"] is None:
        return f"not timed: {row['reason']}"
    return (
        f"{row['seconds'] * 1e3:.3f} ms, {row['times_faster_than_dense']:.2f} times as fast as dense "
        f"({row['dense_way']}, {row['dense_seconds'] * 1e3:.3f} ms)"
    )


def questions(part: Part, options: Any) -> Iterator[Question]:
    """Every distinct layer but the first, whose input is an image."""
    size = 32 if options.tiny else 224
    for model in options.models:
        network, x = models.build(model, size=size)
        seen: dict[Any, Layer] = {}
        for layer in floors.layers(network, x)[1:]:
            geometry = () if isinstance(layer.module, nn.Linear) else (layer.module.stride, layer.module.groups)
            seen.setdefault((layer.module.weight.shape, layer.size, geometry), layer)
        for name in options.precisions:
            for layer in seen.values():
                for density in options.densities:
                    asked_of = replace(layer, module=layer.module.to(part.device, PRECISIONS[name].dtype))
                    yield Question(model, asked_of, density, options.targets, name, part.device)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, append."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    words = parser(__doc__)
    add = words.add_argument
    add("--models", type=listed, default=("vgg16", "resnet50"))
    add("--precisions", type=listed, default=("tf32", "bfloat16"))
    add("--densities", type=lambda text: [float(word) for word in listed(text)], default=[0.5, 0.25, 0.12])
    add("--targets", type=int, default=128)
    options = words.parse_args(given)
    part = begin("sparse", options, given)
    if dispatch.sparse_kernels(part.device) is None:
        part.wrong.append(f"there are no sparse kernels on {part.device.type}: the extension is built without them")
        return part.code()
    timer = Timer(part.device)
    for asked in questions(part, options):
        if part.is_late(str(asked)):
            break
        try:
            measure(part, asked, timer)
        except Exception as error:  # One layer that cannot be measured must not lose the others.
            part.wrong.append(f"{asked}: {type(error).__name__}: {str(error)[:200]}")
            if part.is_lost():
                return part.code(lost=True)
    return part.code()


if __name__ == "__main__":
    raise SystemExit(main())
