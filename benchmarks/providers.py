"""Who is measured: fastlrp per backend, the plain gradient in two ways, a dense floor. Others' LRP is in ``peers``.

Every provider has the same call. Where it has two ways, both are measured, and the better one counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fastlrp.io
from benchmarks.density import AFFINE
from fastlrp.composites import Composite

LOW, HIGH = -3.0, 3.0
"""Bounds of the box rule, for all libraries."""

BLOCK_BYTES = 24 << 20
"""Largest map of a block of the floor's products, the size that fastlrp's blocks have on a CPU."""

Mark = Callable[[], None]


class UnavailableError(RuntimeError):
    """Somebody cannot take part; the message is the reason."""


@dataclass(frozen=True)
class Provider:
    """One who is measured.

    Attributes:
        name: the first word names the library; two ways of one library share it.
        run: ``(x, classes, mark) -> (B, K, *x.shape[1:])``, forward pass included. ``classes`` is ``(B, K)``. It calls
            ``mark`` when what is done once for all targets is over (a provider that gets all K need not).
        limit: most targets per sample that are measured, of one whose cost for each further one is the same.
        comparable: False if the result is no relevance.
        optional: an error leaves this provider out; the reason is printed.
        dtype: what it computes in.
    """

    name: str
    run: Callable[[Tensor, Tensor, Mark], Tensor | None]
    limit: int | None = None
    comparable: bool = True
    optional: bool = False
    dtype: str = "float32"

    @property
    def library(self) -> str:
        return self.name.split()[0]


def composite(name: str) -> Composite:
    """fastlrp's preset with the benchmark's parameters."""
    if name == "epsilon_gamma_box":
        return fastlrp.composites.epsilon_gamma_box(LOW, HIGH)
    return fastlrp.composites.resolve(name)


def _explainer(model: nn.Module, x: Tensor, rules: str | Composite, backend: str) -> fastlrp.Explainer:
    """Captured here, before anything is timed. ``backend``: a name, or with a path for all layers, ``auto/dense``."""
    rules = composite(rules) if isinstance(rules, str) else rules
    name, _, path = backend.partition("/")
    paths: Any = path or "auto"
    return fastlrp.Explainer(model, rules, example_inputs=x, backend=name, paths=paths)


def ours(model: nn.Module, x: Tensor, rules: str | Composite, backend: str) -> Provider:
    """fastlrp."""
    explainer = _explainer(model, x, rules, backend)

    def run(x: Tensor, classes: Tensor, mark: Mark) -> Tensor:
        found: Tensor = explainer(x, classes)
        return found

    return Provider(f"fastlrp {backend}", run)


def streaming(model: nn.Module, x: Tensor, rules: str, backend: str, block: int) -> Provider:
    """fastlrp's stream of blocks, each forgotten when the next one comes; returns the last."""
    explainer = _explainer(model, x, rules, backend)

    def run(x: Tensor, classes: Tensor, mark: Mark) -> Tensor | None:
        found = None
        with explainer.forward(x) as record:
            for _, found in record.stream(classes, block=block):  # noqa: B007 (the last one is returned)
                pass
        return found

    return Provider(f"fastlrp {backend}", run)


def thin(path: Path, epsilons: Sequence[float]) -> Provider:
    """A network of the LRP Toolbox as ``fastlrp.nn``: all classes, under one epsilon after the other."""
    net = fastlrp.io.read_model(path)

    def run(x: Tensor, classes: Tensor, mark: Mark) -> Tensor:
        R = torch.diag_embed(net.forward(x, lrp_aware=True))
        return torch.cat([net.lrp(R, "epsilon", epsilon) for epsilon in epsilons], 1)

    return Provider("fastlrp auto", run)


def gradients(model: nn.Module, limit: int = 8) -> list[Provider]:
    """One forward pass, then a backward pass per target, or one batched backward pass (``is_grads_batched``)."""

    def looped(x: Tensor, classes: Tensor, mark: Mark) -> Tensor:
        leaf = x.detach().requires_grad_()
        y = model(leaf)
        mark()
        chosen = y.gather(1, classes)
        found = [torch.autograd.grad(chosen[:, k].sum(), leaf, retain_graph=True)[0] for k in range(classes.shape[1])]
        return torch.stack(found, 1)

    def batched(x: Tensor, classes: Tensor, mark: Mark) -> Tensor:
        leaf = x.detach().requires_grad_()
        y = model(leaf)
        mark()
        one_hot = torch.nn.functional.one_hot(classes.t(), y.shape[1]).to(y.dtype)  # (K, B, C)
        return torch.autograd.grad(y, leaf, one_hot, is_grads_batched=True)[0].transpose(0, 1)

    return [
        Provider("gradient looped", looped, limit, comparable=False),
        Provider("gradient batched", batched, limit, comparable=False, optional=True),
    ]


def one_gradient(model: nn.Module) -> Provider:
    """One forward pass and the gradient of one class, whatever is asked."""

    def run(x: Tensor, classes: Tensor, mark: Mark) -> None:
        leaf = x.detach().requires_grad_()
        torch.autograd.grad(model(leaf)[0, 3], leaf)

    return Provider("one-gradient", run, limit=1, comparable=False)


# The floor


@dataclass(frozen=True)
class _Product:
    """A layer's product with its transposed weight, on a block of ``rows`` maps that are there already."""

    run: Callable[[], Any]
    rows: int


def floor(model: nn.Module, x: Tensor, limit: int = 32) -> Provider:
    """For every convolution and linear layer one dense product with the transposed weight, and nothing else.

    The operands are random and there beforehand, channels-last; blocks are as large as fastlrp's; the call is the
    faster of two that PyTorch has. Nothing is passed on from layer to layer, so there is nothing to compare.
    """
    shapes: list[tuple[nn.Module, torch.Size, torch.Size]] = []
    hooks = [
        module.register_forward_hook(lambda m, i, y: shapes.append((m, i[0].shape[1:], y.shape[1:])))
        for module in model.modules()
        if isinstance(module, AFFINE)
    ]
    with torch.no_grad():
        model(x[:1])
    for hook in hooks:
        hook.remove()
    products: dict[int, list[_Product]] = {}

    def run(x: Tensor, classes: Tensor, mark: Mark) -> None:
        maps = classes.numel()
        if maps not in products:
            products[maps] = [_product(*shape, maps) for shape in shapes]
        with torch.no_grad():
            for product in products[maps]:
                for _ in range(-(-maps // product.rows)):
                    product.run()

    return Provider("floor", run, limit, comparable=False)


def _product(module: nn.Module, size: torch.Size, out: torch.Size, maps: int) -> _Product:
    largest = max(size.numel(), out.numel()) * 4
    fits = max(1, min(maps, BLOCK_BYTES // largest))
    rows = -(-maps // -(-maps // fits))  # equal blocks
    parameter: Any = module.weight
    weight = parameter.detach()
    if isinstance(module, nn.Linear):
        flow = torch.randn(rows, *out)
        return _Product(lambda: flow @ weight, rows)
    layer: Any = module
    flow, given = _last(torch.randn(rows, *out)), _last(torch.empty(rows, *size))
    weight = _last(weight)
    n = len(layer.kernel_size)
    fixed = (layer.stride, layer.padding, layer.dilation, layer.transposed)

    def backward() -> Any:
        return torch.ops.aten.convolution_backward(
            flow, given, weight, None, *fixed, layer.output_padding, layer.groups, [True, False, False]
        )

    missing = [
        s - ((o - 1) * t - 2 * p + d * (k - 1) + 1)
        for s, o, t, p, d, k in zip(
            size[1:], out[1:], layer.stride, layer.padding, layer.dilation, layer.kernel_size, strict=True
        )
    ]

    def transposed() -> Any:
        return torch.convolution(
            flow, weight, None, layer.stride, layer.padding, layer.dilation, True, missing, layer.groups
        )

    if n != 2 or layer.transposed or not all(0 <= m < t for m, t in zip(missing, layer.stride, strict=True)):
        return _Product(backward, rows)
    return _Product(min((backward, transposed), key=_seconds), rows)


def _last(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t


def _seconds(run: Callable[[], Any]) -> float:
    with torch.no_grad():
        run()
        begin = time.perf_counter()
        run()
    return time.perf_counter() - begin
