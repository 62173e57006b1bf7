"""The product over living neurons only beside the dense product, at the models' layer shapes, on both ways.

    python -m benchmarks.gpu.sparse --output rows.jsonl --densities 0.5,0.25,0.12 --targets 128

A random share of the neurons above and below each layer is alive, the same for all targets. Relevance lies compactly
before and after, as it does on its way through a network. Beside it: the fastest dense product that cuDNN or cuBLAS
have, with the transposed weight on the way down (see ``benchmarks.floors``) and with the weight on the way up, without
coefficients, on a map that lies ready. Results first, against the definition and against composed operations.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import floors, models, precisions
from benchmarks.floors import Layer
from benchmarks.gpu import calls
from benchmarks.gpu.part import Part, Row, begin, listed, parser
from benchmarks.gpu.timing import Timer, in_turns
from benchmarks.precisions import PRECISIONS
from fastlrp.backends import dispatch
from fastlrp.plan.compact import Compact, Pattern
from fastlrp.plan.forms import Affine
from fastlrp.plan.geometry import ConvGeometry
from fastlrp.plan.steps import BackwardStep
from fastlrp.run.sparse.upward import SparseUp

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
    up: bool = False

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
        way = "up, " if self.up else ""
        return f"{self.model} {way}{shape} -> {sizes} density {self.density:g} K={self.targets} {self.precision}"


@dataclass(frozen=True)
class Case:
    """A question with its numbers: coefficients ``(1, Co, *S')`` with dead neurons, who is alive below, and what
    arrives: relevance of the output, or on the way up what groups bring to the input, zero where that is dead."""

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
        below, shape = alive(layer.size), layer.size if asked.up else layer.out
        relevance = torch.randn(1, asked.targets, *shape, device=device, dtype=torch.float32).to(dtype)
        return Case(asked, weight, u, below, relevance * below.unsqueeze(1) if asked.up else relevance)

    def dense(self, backend: str, targets: int, upcast: bool = False) -> Tensor:
        """The same by the dense operation, zero where nobody is alive at the end."""
        change = Tensor.double if upcast else Tensor.clone
        relevance, weight, u = (change(t) for t in (self.relevance[:, :targets], self.weight, self.u))
        geometry, linear = self.asked.geometry, not self.asked.geometry.stride
        op = "linear_relevance" if linear else "conv_relevance"
        call = dispatch.select(op, backend, self.asked.device, relevance.dtype).call
        if self.asked.up:  # The way down through the transposed layer, times the coefficients.
            turned = () if linear else (list(self.asked.layer.out[1:]), *_turned(self.asked))
            matrix = weight.t() if linear else weight
            result: Tensor = call(relevance, matrix, None, None, u, None, *turned, False, True)
            return result
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
        above, below = Pattern.of(self.u), Pattern.of(self.below)
        return form, Compact.of(self.relevance, below if self.asked.up else above), above if self.asked.up else below

    def run(self) -> Callable[[], Any]:
        """What computes it from relevance that lies compactly, with all patterns made."""
        form, arriving, leaving = self.sparse()
        if self.asked.up:
            step = BackwardStep("", None, torch.clone, (0,), (0,), (1,), (form.work,), form.work, form)
            up = SparseUp(step, [self.u], arriving.pattern, leaving, 1.0)
            return lambda: up(arriving)
        return lambda: form.relevance_at(arriving, {0: self.u}, leaving, False)


def _turned(asked: Question) -> tuple[Any, ...]:
    """The geometry of a convolution with input and output exchanged."""
    stride, padding, dilation, _, _, groups = asked.geometry.arguments
    sizes = zip(asked.layer.size[1:], asked.layer.out[1:], asked.layer.module.kernel_size, strict=True)
    taken = zip(sizes, stride, padding, dilation, strict=True)
    left = [i - ((o - 1) * s - 2 * p + d * (k - 1) + 1) for (i, o, k), s, p, d in taken]
    return stride, padding, dilation, True, left, groups


def dense_product(asked: Question) -> floors.Product:
    """The library's product beside it."""
    operands, layer = floors.Operands(asked.device, asked.dtype), asked.layer
    if not asked.up:
        return floors.fastest(layer, operands, asked.targets)
    rows = operands.rows(layer, asked.targets)
    given, bare = operands.map(layer.size, rows), copy.copy(layer.module)
    bare.bias = None
    return floors.Product(layer, "the layer itself", lambda: bare(given), rows, asked.targets)


def measure(part: Part, asked: Question, timer: Timer) -> Row:
    """Check, time in turns, write the row."""
    with precisions.using(asked.precision), torch.no_grad():
        case = Case.of(asked)
        run = case.run()
        alive = Pattern.of(case.u).density, Pattern.of(case.below).density
        error, limit, reason = check(case, run())
        row: Row = {
            "model": asked.model, "way": "up" if asked.up else "down",
            "layer": asked.layer.name, "call": str(asked), "targets": asked.targets,
            "precision": asked.precision, "density": asked.density, "above": alive[0],
            "below": alive[1], "error": error, "limit": limit, "reason": reason, "seconds": None,
        }  # fmt: skip
        if reason is None:
            product = dense_product(asked)
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
                    for up in (way == "up" for way in options.ways):
                        yield Question(model, asked_of, density, options.targets, name, part.device, up)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, append."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    words = parser(__doc__)
    add = words.add_argument
    add("--models", type=listed, default=("vgg16", "resnet50"))
    add("--precisions", type=listed, default=("tf32", "bfloat16"))
    add("--densities", type=lambda text: [float(word) for word in listed(text)], default=[0.5, 0.25, 0.12])
    add("--targets", type=int, default=128)
    add("--ways", type=listed, default=("down", "up"))
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
