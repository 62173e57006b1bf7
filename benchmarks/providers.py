"""Who is measured: fastlrp per backend, the plain gradient in two ways, a dense floor. Others' LRP is in ``peers``.

Every provider has the same call. Where it has two ways, both are measured, and the better one counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fastlrp.io
from benchmarks import floors, precisions
from fastlrp.composites import Composite
from fastlrp.errors import BackendError

ROUNDED = 0.02
"""Largest difference of fastlrp's relevance with products of bfloat16; measured: at most 8e-3."""

LOW, HIGH = -3.0, 3.0
"""Bounds of the box rule, for all libraries."""

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
        rounds: largest difference that is fine of one whose products read bfloat16; None: the round's.
    """

    name: str
    run: Callable[[Tensor, Tensor, Mark], Tensor | None]
    limit: int | None = None
    comparable: bool = True
    optional: bool = False
    dtype: str = "float32"
    rounds: float | None = None

    @property
    def library(self) -> str:
        return self.name.split()[0]


def composite(name: str) -> Composite:
    """fastlrp's preset with the benchmark's parameters."""
    if name == "epsilon_gamma_box":
        return fastlrp.composites.epsilon_gamma_box(LOW, HIGH)
    return fastlrp.composites.resolve(name)


def _explainer(model: nn.Module, x: Tensor, rules: str | Composite, backend: str) -> fastlrp.Explainer:
    """Captured here, before anything is timed.

    Args:
        backend: a name, or with a path for all layers, ``auto/dense``, or with products of bfloat16, ``auto/bf16``.
    """
    rules = composite(rules) if isinstance(rules, str) else rules
    name, *more = backend.split("/")
    precision: Any = "bf16" if "bf16" in more else "auto"
    paths: Any = next((word for word in more if word != "bf16"), "auto")
    return fastlrp.Explainer(model, rules, example_inputs=x, backend=name, paths=paths, precision=precision)


def each(backends: Sequence[str], guard: bool, make: Callable[[str], Provider]) -> tuple[list[Provider], list[str]]:
    """fastlrp per backend, and why some are missing.

    Args:
        guard: on a GPU not all backends need be there, and one that fails must not lose the others.
    """
    if not guard:
        return [make(backend) for backend in backends], []
    parts, left_out = [], []
    for backend in backends:
        try:
            parts.append(guarded(f"fastlrp {backend}", partial(make, backend)))
        except (BackendError, UnavailableError) as reason:
            left_out.append(f"  {'fastlrp ' + backend:18} left out: {reason}")
    return parts, left_out


def guarded(name: str, make: Callable[[], Provider], *also: type[Exception]) -> Provider:
    """What ``make`` makes; if it fails, one who fails with that error when it is to run.

    Args:
        also: errors that are failures too, although they say that the backend is not there at all.

    Raises:
        BackendError, UnavailableError: if it is not there, unless that is among ``also``.
    """
    try:
        return make()
    except Exception as error:
        if isinstance(error, (BackendError, UnavailableError)) and not isinstance(error, also):
            raise
        failure = error

    def fail(*asked: Any) -> Tensor:
        raise failure

    return Provider(name, fail, optional=True)


def ours(model: nn.Module, x: Tensor, rules: str | Composite, backend: str) -> Provider:
    """fastlrp."""
    explainer = _explainer(model, x, rules, backend)

    def run(x: Tensor, classes: Tensor, mark: Mark) -> Tensor:
        found: Tensor = explainer(x, classes)
        return found

    return Provider(f"fastlrp {backend}", run, rounds=ROUNDED if "/bf16" in backend else None)


def switched(part: Provider) -> Provider:
    """The same under PyTorch's own switches for products of bfloat16 on a CPU, as a library of its own."""

    def run(x: Tensor, classes: Tensor, mark: Mark) -> Tensor | None:
        with precisions.using("bf16"):
            return part.run(x, classes, mark)

    name = f"{part.library}-bf16{part.name[len(part.library) :]}"
    return replace(part, name=name, run=run, rounds=0.5)


def of_transformer(work: Any, rules: str, backend: str = "auto") -> tuple[Provider, Any]:
    """fastlrp on a workload of :mod:`benchmarks.attention_models`, and the graph that it captured."""
    name = "input_ids" if work.is_text else None
    given = {name: work.x} if name else work.x
    output = "logits" if name else None
    explainer = fastlrp.Explainer(work.model, rules, example_inputs=given, output=output, backend=backend)

    def run(x: Tensor, classes: Tensor, mark: Mark) -> Tensor:
        found: Any = explainer({name: x}, classes, at=-1)[name] if name else explainer(x, classes)
        return found  # type: ignore[no-any-return]

    return Provider(f"fastlrp {backend}", run), explainer.plan.graph


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


def replayed(model: nn.Module, x: Tensor, classes: Tensor, rules: str, backend: str) -> Provider:
    """fastlrp's work for these classes, recorded once as one CUDA graph that each call repeats.

    Raises:
        UnavailableError: where nothing can be recorded.
    """
    explainer: Any = _explainer(model, x, rules, backend)
    try:
        replay = explainer.replay(x, classes.shape[1])
    except (AttributeError, RuntimeError) as error:
        raise UnavailableError(str(error)) from error
    host = classes.cpu()

    def run(x: Tensor, classes: Tensor, mark: Mark) -> Tensor:
        if classes.shape != host.shape:  # The check asks for a few of them alone.
            alone: Tensor = explainer(x, classes)
            return alone
        found: Tensor = replay(x, host)[1]
        return found

    return Provider(f"fastlrp replayed {backend}", run)


def thin(path: Path, epsilons: Sequence[float]) -> Provider:
    """A network of the LRP Toolbox as ``fastlrp.nn``: all classes, under one epsilon after the other."""
    net = fastlrp.io.read_model(path)

    def run(x: Tensor, classes: Tensor, mark: Mark) -> Tensor:
        R = torch.diag_embed(net.forward(x, lrp_aware=True))
        return torch.cat([net.lrp(R, "epsilon", epsilon) for epsilon in epsilons], 1)

    return Provider("fastlrp auto", run)


def gradients(model: nn.Module, limit: int = 8, expanded: int | None = None) -> list[Provider]:
    """One forward pass, then a backward pass per target, or one batched backward pass (``is_grads_batched``).

    ``expanded``: a third way, for GPUs that one image does not fill: a batch of so many copies, a target each.
    """

    def looped(x: Tensor, classes: Tensor, mark: Mark) -> Tensor:
        classes, leaf = classes.to(x.device), x.detach().requires_grad_()
        y = model(leaf)
        mark()
        chosen = y.gather(1, classes)
        found = [torch.autograd.grad(chosen[:, k].sum(), leaf, retain_graph=True)[0] for k in range(classes.shape[1])]
        return torch.stack(found, 1)

    def batched(x: Tensor, classes: Tensor, mark: Mark) -> Tensor:
        classes, leaf = classes.to(x.device), x.detach().requires_grad_()
        y = model(leaf)
        mark()
        one_hot = torch.nn.functional.one_hot(classes.t(), y.shape[1]).to(y.dtype)  # (K, B, C)
        return torch.autograd.grad(y, leaf, one_hot, is_grads_batched=True)[0].transpose(0, 1)

    def copied(x: Tensor, classes: Tensor, mark: Mark) -> Tensor:
        classes, leaf = classes.to(x.device), x.repeat_interleave(classes.shape[1], 0).requires_grad_()
        chosen = model(leaf).gather(1, classes.reshape(-1, 1))
        return torch.autograd.grad(chosen.sum(), leaf)[0].view(*classes.shape, *x.shape[1:])

    ways = [
        Provider("gradient looped", looped, limit, comparable=False),
        Provider("gradient batched", batched, limit, comparable=False, optional=True),
    ]
    return ways if expanded is None else [*ways, Provider("gradient expanded", copied, expanded, False, True)]


def one_gradient(model: nn.Module) -> Provider:
    """One forward pass and the gradient of one class, whatever is asked."""

    def run(x: Tensor, classes: Tensor, mark: Mark) -> None:
        leaf = x.detach().requires_grad_()
        torch.autograd.grad(model(leaf)[0, 3], leaf)

    return Provider("one-gradient", run, limit=1, comparable=False)


def floor(model: nn.Module, x: Tensor, limit: int = 32) -> Provider:
    """For every convolution and linear layer one dense product with the transposed weight, and nothing else.

    See :mod:`benchmarks.floors`. Nothing is passed on from layer to layer, so there is nothing to compare.
    """
    ready: dict[int, list[floors.Product]] = {}

    def run(x: Tensor, classes: Tensor, mark: Mark) -> None:
        maps = classes.numel()
        if maps not in ready:
            ready[maps] = floors.products(model, x, maps)
        for product in ready[maps]:
            product.run()

    return Provider("floor", run, limit, comparable=False)
