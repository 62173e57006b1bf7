"""Other people's LRP: Zennit, Captum, and the LRP Toolbox's procedure. Each has a copy of the model to itself."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import toolbox
from benchmarks.measure import seconds
from benchmarks.models import torchvision_models
from benchmarks.providers import HIGH, LOW, Mark, Provider, UnavailableError

EPSILON = 1e-6
"""The presets' stabilizer."""


def zennit(model: nn.Module, name: str, family: str, limit: int, batch: int | None = None) -> list[Provider]:
    """Zennit with its canonizers: the graph retained over targets, or the batch expanded by them.

    Its canonizers merge a batch norm and leave one behind that still divides by ``sqrt(1 + eps)``, 53 times in a
    ResNet-50. That is taken out for the comparison of outputs; it costs or saves no time.

    Args:
        limit: most targets per sample that are measured.
        batch: targets at once of the expanded batch, whose graph is then retained over such blocks: the better of both
            ways. None: all at once.

    Raises:
        UnavailableError: if it is not installed or has no such composite.
    """
    rules = _zennit_composite(name, family)
    model = copy.deepcopy(model)

    def retained(x: Tensor, classes: Tensor, mark: Mark) -> Tensor:
        classes = classes.to(x.device)
        with rules.context(model) as modified, _exact_batch_norms(model):
            leaf = x.clone().requires_grad_()
            y = modified(leaf)
            mark()
            found = []
            for k in range(classes.shape[1]):
                (part,) = torch.autograd.grad(y, leaf, _initial(y, classes[:, k : k + 1]), retain_graph=True)
                found.append(part)
            return torch.stack(found, 1)

    def expanded(x: Tensor, classes: Tensor, mark: Mark) -> Tensor:
        classes = classes.to(x.device)
        count = classes.shape[1]
        size = min(batch or count, count)
        with rules.context(model) as modified, _exact_batch_norms(model):
            leaf = x.repeat_interleave(size, 0).requires_grad_()
            y = modified(leaf)
            if batch is not None:
                mark()
            found = []
            for start in range(0, count, size):
                # The last block is filled up with what comes before it.
                begin = min(start, count - size)
                chosen = classes[:, begin : begin + size].reshape(-1, 1)
                (part,) = torch.autograd.grad(y, leaf, _initial(y, chosen), retain_graph=start + size < count)
                part = part.view(len(x), size, *x.shape[1:])
                found.append(part[:, start - begin :])
            return torch.cat(found, 1) if len(found) > 1 else found[0]

    # A block more than fits at once: the blocks after the first cost no forward pass.
    most = limit if batch is None else max(limit, 2 * batch)
    return [Provider("zennit retained", retained, limit), Provider("zennit expanded", expanded, most)]


def best_batch(make: Callable[[int], Provider], x: Tensor, classes: Tensor) -> tuple[int, list[str]]:
    """How many targets at once are fastest, found by doubling until memory or targets end.

    Args:
        make: the provider that takes so many at once. classes: ``(B, K)``.

    Returns:
        the number, and a line for each that was tried.

    Raises:
        RuntimeError: if not even one fits.
    """
    with _some_memory_left(x.device):
        return _doubled(make, x, classes)


@contextmanager
def _some_memory_left(device: torch.device) -> Iterator[None]:
    """A part of a GPU's memory is for those who are measured in the same process."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_per_process_memory_fraction(0.85, device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def _doubled(make: Callable[[int], Provider], x: Tensor, classes: Tensor) -> tuple[int, list[str]]:
    seen: dict[int, float] = {}
    lines = []
    size = 1
    while size <= classes.shape[1]:
        part = make(size)
        try:
            part.run(x, classes[:, :size], lambda: None)  # libraries choose their algorithms
            seen[size] = seconds(part, x, classes)
        except RuntimeError as error:  # PyTorch's own for memory, and what libraries make of it
            if not seen:
                raise
            lines.append(f"{size} at once: {str(error).splitlines()[0][:120]}")
            break
        finally:
            if x.device.type == "cuda":
                torch.cuda.empty_cache()
        lines.append(f"{size} at once: {seen[size]:.5f} s/target")
        size *= 2
    return min(seen, key=lambda key: seen[key]), lines


def _initial(y: Tensor, classes: Tensor) -> Tensor:
    """The score of one class per sample, ``(B, C)``."""
    return torch.zeros_like(y).scatter_(1, classes, y.detach().gather(1, classes))


def _zennit_composite(name: str, family: str) -> Any:
    try:
        torchvision_models()  # zennit imports torchvision.
        import zennit.composites
        import zennit.rules
        import zennit.torchvision
        import zennit.types
    except ImportError as error:
        raise UnavailableError(f"zennit is not installed ({error})") from error
    canonizer = zennit.torchvision.ResNetCanonizer if family == "resnet" else zennit.torchvision.VGGCanonizer
    options: dict[str, Any] = {"canonizers": [canonizer()]}
    if name == "epsilon":
        weighted = (zennit.types.Convolution, zennit.types.Linear)
        layers = [*zennit.composites.layer_map_base(EPSILON), (weighted, zennit.rules.Epsilon(EPSILON))]
        return zennit.composites.LayerMapComposite(layers, **options)
    if name not in zennit.composites.COMPOSITES:
        raise UnavailableError(f"zennit has no composite {name!r}")
    if name == "epsilon_gamma_box":
        options.update(low=LOW, high=HIGH)
    return zennit.composites.COMPOSITES[name](**options)


@contextmanager
def _exact_batch_norms(model: nn.Module) -> Iterator[None]:
    norms = [(m, m.eps) for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm, _ in norms:
        norm.eps = 0.0
    try:
        yield
    finally:
        for norm, eps in norms:
            norm.eps = eps


def captum(model: nn.Module, name: str, limit: int) -> list[Provider]:
    """Captum's LRP under the one composite whose rules it shares: epsilon everywhere. Target by target, or expanded.

    Raises:
        UnavailableError: if it is not installed, or for any other composite.
    """
    if name != "epsilon":
        raise UnavailableError(
            f"its rules are not those of {name} (no alpha-beta or box; z+ and gamma treat the bias and the sign of "
            "the input otherwise); they are those of the composite 'epsilon'"
        )
    try:
        from captum.attr import LRP
    except ImportError as error:
        raise UnavailableError(f"captum is not installed ({error})") from error
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False  # Its hooks need it.

    def attribute(x: Tensor, target: Any) -> Tensor:
        _captum_rules(model)
        found: Tensor = LRP(model).attribute(x.clone().requires_grad_(), target=target)
        return found.detach()

    def looped(x: Tensor, classes: Tensor, mark: Mark) -> Tensor:
        return torch.stack([attribute(x, classes[:, k]) for k in range(classes.shape[1])], 1)

    def expanded(x: Tensor, classes: Tensor, mark: Mark) -> Tensor:
        found = attribute(x.repeat_interleave(classes.shape[1], 0), classes.flatten())
        return found.view(*classes.shape, *x.shape[1:])

    return [
        Provider("captum looped", looped, limit, optional=True),
        Provider("captum expanded", expanded, limit, optional=True),
    ]


def _captum_rules(model: nn.Module) -> None:
    """Captum forgets a module's rule after each use. A max-pool's epsilon is one that changes nothing."""
    from captum.attr._utils.lrp_rules import EpsilonRule

    module: Any
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear, nn.AvgPool2d, nn.AdaptiveAvgPool2d)):
            module.rule = EpsilonRule(EPSILON)
        elif isinstance(module, nn.MaxPool2d):
            module.rule = EpsilonRule(1e-30)


def toolbox_sweep(epsilons: Sequence[float], dtype: Any) -> Provider:
    """The LRP Toolbox's way: one ``lrp_aware`` forward pass, one ``lrp`` per class and epsilon.

    Raises:
        GoldensMissingError: without its network.
    """
    network = toolbox.read(toolbox.golden("LeNet-5.txt"), dtype)

    def run(x: Tensor, classes: Tensor, mark: Mark) -> Tensor:
        Y = toolbox.forward(network, np.ascontiguousarray(x.permute(0, 2, 3, 1).numpy().astype(dtype)))
        found = []
        for epsilon in epsilons:
            for column in range(Y.shape[1]):
                R = np.zeros_like(Y)
                R[:, column] = Y[:, column]
                for layer in reversed(network):
                    R = layer.lrp(R, epsilon, epsilon)
                found.append(R)
        for layer in network:
            layer.clean()
        return torch.from_numpy(np.stack(found, 1).transpose(0, 1, 4, 2, 3)).to(x.dtype)

    name = np.dtype(dtype).name
    return Provider(f"toolbox {name}", run, dtype=name)


def toolbox_procedure(variant: str, dtype: Any) -> Provider:
    """The LRP Toolbox's way: one ``lrp_aware`` forward pass, one ``lrp`` per class.

    Raises:
        GoldensMissingError: without its network.
    """
    network = toolbox.read(toolbox.golden("LeNet-5.txt"), dtype)

    def run(x: Tensor, classes: Tensor, mark: Mark) -> Tensor:
        Y = toolbox.forward(network, np.ascontiguousarray(x.permute(0, 2, 3, 1).numpy().astype(dtype)))
        rows, found = np.arange(len(Y)), []
        for column in classes.T.numpy():
            R = np.zeros_like(Y)
            R[rows, column] = Y[rows, column]
            found.append(toolbox.lrp(network, R, variant))
        for layer in network:
            layer.clean()
        return torch.from_numpy(np.stack(found, 1).transpose(0, 1, 4, 2, 3)).to(x.dtype)

    name = np.dtype(dtype).name
    return Provider(f"toolbox {name}", run, dtype=name)
