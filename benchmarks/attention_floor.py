"""What dense products alone cost in a transformer: for every target one product with the transposed weight of each
layer, and the four products of each attention; random operands lie ready, nothing is passed on.

Layers are those of fastlrp's captured graph but the one below the targets, of which a target takes a row. Products go
by the faster of PyTorch's two libraries, in blocks of at most 24 MiB, as convolutions and layers of other networks do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks import floors
from benchmarks.attention_models import Workload
from benchmarks.clock import Clock
from benchmarks.providers import Mark, Provider

Run = Callable[[], Any]
BLOCK_BYTES = floors.BLOCK_BYTES["cpu"]


def floor(work: Workload, graph: Any, limit: int = 32) -> Provider:
    """A provider that computes no relevance. ``graph``: of an explainer's plan."""
    ready: dict[int, list[tuple[Run, int]]] = {}

    def run(x: Tensor, classes: Tensor, mark: Mark) -> None:
        maps = classes.numel()
        if maps not in ready:
            ready[maps] = products(work, graph, maps)
        with torch.no_grad():
            for call, times in ready[maps]:
                for _ in range(times):
                    call()

    return Provider("floor", run, limit, comparable=False)


def products(work: Workload, graph: Any, maps: int) -> list[tuple[Run, int]]:
    """Calls, and how often each is made for so many targets. Equal shapes share their operands."""
    made: dict[Any, tuple[Run, int]] = {}
    found: list[tuple[Run, int]] = []
    for key, size, ways in _layers(graph):
        rows = _rows(size, maps)
        if (key, rows) not in made:
            made[key, rows] = (_fastest(dict(ways(rows))), -(-maps // rows))
        found.append(made[key, rows])
    operands = floors.Operands(work.x.device, torch.float32)
    if not work.is_text:
        convolutions = [la for la in floors.layers(work.model, work.x) if isinstance(la.module, torch.nn.Conv2d)]
        found += [(p.call, p.calls) for p in (floors.fastest(la, operands, maps) for la in convolutions)]
    return found


def _rows(size: int, maps: int) -> int:
    """Targets at once, so that all calls have about as many."""
    fits = max(1, min(maps, BLOCK_BYTES // (4 * size)))
    return -(-maps // -(-maps // fits))


def _layers(graph: Any) -> Iterator[tuple[Any, int, Callable[[int], Iterator[tuple[str, Run]]]]]:
    """Key, entries of the largest register, and the ways to compute the product of so many targets."""
    weighted = [node for node in graph.nodes if node.kind == "linear" and node.sources]
    for node in graph.nodes:
        if node.kind == "linear" and node.sources and node is not weighted[-1]:
            outputs, inputs = node.attributes["weight"].tensor().shape
            positions = node.output.numel // outputs
            key = ("linear", outputs, inputs, positions)
            yield key, positions * max(outputs, inputs), lambda k, key=key: _linear(k, *key[1:])
        elif node.kind == "attention":
            q, k_, v = node.attributes["operands"]
            key = ("attention", math.prod(q.sizes[:-2]), q.sizes[-2], k_.sizes[-2], q.sizes[-1], v.sizes[-1])
            yield key, key[1] * key[2] * max(key[3], key[5]), lambda k, key=key: _attention(k, *key[1:])
        elif node.kind == "product":
            a, b = (v.sizes for v in node.inputs[:2])
            key = ("product", math.prod(a[:-2]), a[-2], a[-1], b[-1])
            yield key, key[1] * key[2] * max(key[3], key[4]), lambda k, key=key: _product(k, *key[1:])


def _linear(k: int, outputs: int, inputs: int, positions: int) -> Iterator[tuple[str, Run]]:
    flow, weight = torch.randn(k * positions, outputs), torch.randn(outputs, inputs)
    other = torch.randn(inputs, outputs).t()
    yield "MKL", lambda: flow @ weight
    yield "MKL, weight transposed", lambda: flow @ other
    onednn = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
    if onednn is not None:
        yield "oneDNN", lambda: onednn(flow, weight.t(), None, "none", [], "")
        yield "oneDNN, weight transposed", lambda: onednn(flow, other.t(), None, "none", [], "")


def _attention(k: int, heads: int, rows: int, keys: int, size: int, value_size: int) -> Iterator[tuple[str, Run]]:
    """``g V^T``, ``P^T g``, ``c_s K`` and ``c_s^T Q`` with the targets among the rows or columns."""
    g, values = torch.randn(heads, k * rows, value_size), torch.randn(heads, value_size, keys)
    weights, wide = torch.randn(heads, keys, rows), torch.randn(heads, rows, k * value_size)
    scores, key = torch.randn(heads, k * rows, keys), torch.randn(heads, keys, size)
    across, query = torch.randn(heads, k * keys, rows), torch.randn(heads, rows, size)

    def four() -> None:
        torch.bmm(g, values)
        torch.bmm(weights, wide)
        torch.bmm(scores, key)
        torch.bmm(across, query)

    yield "MKL", four


def _product(k: int, heads: int, rows: int, inner: int, columns: int) -> Iterator[tuple[str, Run]]:
    """Both operands' relevance of a batched product."""
    flow, b = torch.randn(heads, k * rows, columns), torch.randn(heads, columns, inner)
    a, across = torch.randn(heads, inner, rows), torch.randn(heads, rows, k * columns)

    def two() -> None:
        torch.bmm(flow, b)
        torch.bmm(a, across)

    yield "MKL", two


def _fastest(ways: dict[str, Run]) -> Run:
    if len(ways) == 1:
        return next(iter(ways.values()))
    clock = Clock(torch.device("cpu"))
    cost = {}
    with torch.no_grad():
        for name, call in ways.items():
            call()
            cost[name] = min(clock.seconds(call) for _ in range(2))
    return ways[min(cost, key=lambda name: cost[name])]
