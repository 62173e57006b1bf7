"""From a network to a file's entries; what the LRP Toolbox cannot express is refused by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fastlrp import nn
from fastlrp.io.entries import ConvolutionEntry, Entry, LinearEntry, PlainEntry, PoolEntry, Size

_ACTIVATIONS: dict[type, Literal["Rect", "Tanh"]] = {
    nn.ReLU: "Rect",
    nn.Rect: "Rect",
    torch.nn.ReLU: "Rect",
    nn.Tanh: "Tanh",
    torch.nn.Tanh: "Tanh",
}
_LINEAR = (nn.Linear, torch.nn.Linear)
_CONVOLUTION = (nn.Convolution, nn.Conv2d, torch.nn.Conv2d)


def describe(model: torch.nn.Module, input_shape: Sequence[int] | None) -> list[Entry]:
    """Entries of a sequence of modules, weights as float32 or float64.

    Raises:
        TypeError: a module that the Toolbox does not have. ValueError: one that it has, in a form that it does not
            have, or modules that do not fit each other.
    """
    if not isinstance(model, torch.nn.Sequential):
        raise TypeError(f"model must be a fastlrp.nn.Sequential or torch.nn.Sequential, got {type(model).__name__}")
    entries: list[Entry] = []
    size, turn = _start(input_shape), _Turn()
    for path, module in _leaves(model, ""):
        name = f"module {path} ({type(module).__name__})"
        entry = _entry(name, module)
        if turn.waiting and isinstance(entry, LinearEntry):
            entry = turn.turned(name, entry)
        if _moves_axes(module) and not size.flat:
            turn = _Turn(name, size)
        try:
            size = size.after(entry)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        entries.append(entry)
    if turn.waiting and not turn.harmless:
        raise ValueError(
            f"{turn.name} gives the output in the order channels, rows, columns; the Toolbox's Flatten gives rows, "
            'columns, channels: use fastlrp.nn.Flatten(order="hwc")'
        )
    if not entries:
        raise ValueError("model has no layers")
    return entries


def _start(input_shape: Sequence[int] | None) -> Size:
    if input_shape is None:
        return Size()
    shape = tuple(input_shape)
    if len(shape) not in (1, 3) or not all(isinstance(v, int) and v >= 1 for v in shape):
        raise ValueError(
            f"input_shape must be (channels, height, width) or (features,), without the batch axis, got {shape}"
        )
    return Size(True, shape[0]) if len(shape) == 1 else Size(False, *shape)


def _leaves(model: torch.nn.Sequential, prefix: str) -> Iterator[tuple[str, torch.nn.Module]]:
    # Not named_children(): that leaves out a module that stands in two places.
    for name, module in model._modules.items():
        if type(module) in (nn.Sequential, torch.nn.Sequential):
            assert isinstance(module, torch.nn.Sequential)
            yield from _leaves(module, f"{prefix}{name}.")
        else:
            assert module is not None
            yield f"{prefix}{name}", module
            if type(module) is nn.Linear and module.act != "linear":
                yield f"{prefix}{name}", _activation(f"{prefix}{name}", module.act)


def _activation(path: str, act: str) -> torch.nn.Module:
    """The layer that a Linear brings along."""
    known: dict[str, type[torch.nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}
    if act not in known:
        raise TypeError(f"module {path} has act={act!r}, which the Toolbox does not have: expected relu or tanh")
    return known[act]()


def _entry(name: str, module: torch.nn.Module) -> Entry:
    # Exact types: a subclass may compute something else.
    kind = type(module)
    if kind in _LINEAR:
        assert isinstance(module, torch.nn.Linear)
        weight = _array(name, module.weight).T
        return LinearEntry(np.ascontiguousarray(weight), _bias(name, module.bias, weight))
    if kind in _CONVOLUTION:
        assert isinstance(module, torch.nn.Conv2d)
        return _convolution(name, module)
    if kind in _ACTIVATIONS:
        return PlainEntry(_ACTIVATIONS[kind])
    if kind in (nn.Softmax, torch.nn.Softmax):
        if getattr(module, "dim", None) not in (None, 1, -1):
            raise ValueError(f"{name}: dim={module.dim}, the Toolbox's SoftMax is over features: dim=1")
        return PlainEntry("SoftMax")
    if kind in (nn.Flatten, torch.nn.Flatten):
        return _flatten(name, module)
    if kind in (nn.SumPool2d, nn.MaxPool2d):
        return PoolEntry("SumPool" if kind is nn.SumPool2d else "MaxPool", _pair(module.pool), _pair(module.stride))
    if kind is torch.nn.MaxPool2d:
        assert isinstance(module, torch.nn.MaxPool2d)
        return _max_pool(name, module)
    hint = ""
    if "AvgPool" in kind.__name__:
        hint = "; a SumPool2d, the sum divided by sqrt(height * width), is the pool that the Toolbox's format has"
    raise TypeError(
        f"{name} cannot be written: expected Linear, Convolution, Conv2d, SumPool2d, MaxPool2d, ReLU, Tanh, Softmax, "
        f"Flatten{hint}"
    )


def _convolution(name: str, module: torch.nn.Conv2d) -> ConvolutionEntry:
    padding = module.padding if isinstance(module.padding, str) else _pair(module.padding)
    for what, found, allowed in (
        ("padding", padding, ((0, 0), "valid")),
        ("dilation", _pair(module.dilation), ((1, 1),)),
        ("groups", module.groups, (1,)),
    ):
        if found not in allowed:
            raise ValueError(f"{name}: {what}={found}, the Toolbox's Convolution has {what}={allowed[0]} only")
    weight = _array(name, module.weight).transpose(2, 3, 1, 0)
    return ConvolutionEntry(np.ascontiguousarray(weight), _bias(name, module.bias, weight), _pair(module.stride))


def _max_pool(name: str, module: torch.nn.MaxPool2d) -> PoolEntry:
    for what, found, allowed in (
        ("padding", _pair(module.padding), (0, 0)),
        ("dilation", _pair(module.dilation), (1, 1)),
        ("ceil_mode", module.ceil_mode, False),
        ("return_indices", module.return_indices, False),
    ):
        if found != allowed:
            raise ValueError(f"{name}: {what}={found}, the Toolbox's MaxPool has {what}={allowed} only")
    return PoolEntry("MaxPool", _pair(module.kernel_size), _pair(module.stride))


def _flatten(name: str, module: torch.nn.Module) -> PlainEntry:
    axes = (getattr(module, "start_dim", 1), getattr(module, "end_dim", -1))
    if axes not in ((1, -1), (1, 3)):
        raise ValueError(
            f"{name}: start_dim={axes[0]}, end_dim={axes[1]}: the Toolbox's Flatten keeps the batch axis only"
        )
    return PlainEntry("Flatten")


def _moves_axes(module: torch.nn.Module) -> bool:
    """A Flatten that puts channels first, as PyTorch does."""
    return type(module) is torch.nn.Flatten or (type(module) is nn.Flatten and module.order == "chw")


class _Turn:
    """The order of features behind a Flatten that puts channels first, until a Linear takes it into its weight."""

    def __init__(self, name: str = "", size: Size | None = None) -> None:
        self.name, self.size = name, size

    @property
    def waiting(self) -> bool:
        return self.size is not None

    @property
    def harmless(self) -> bool:
        """Both orders are the same: one channel, or one position."""
        return self.size is not None and (self.size.channels == 1 or self.size.height == self.size.width == 1)

    def turned(self, name: str, entry: LinearEntry) -> LinearEntry:
        """The Linear for features in the Toolbox's order: rows, columns, channels."""
        size, m = self.size, entry.weight.shape[0]
        self.size = None
        assert size is not None
        if size.channels in (1, m):
            return entry
        if size.channels is None or size.height is None or size.width is None:
            raise ValueError(
                f"{self.name} puts channels first, the Toolbox's Flatten puts rows first: give "
                f"input_shape=(channels, height, width), then the weight of {name} is turned into that order"
            )
        shape = (size.channels, size.height, size.width)
        if m != shape[0] * shape[1] * shape[2]:
            raise ValueError(f"{name} takes {m} features, but {self.name} gives {' x '.join(map(str, shape))}")
        weight = entry.weight.reshape(*shape, -1).transpose(1, 2, 0, 3).reshape(entry.weight.shape)
        return LinearEntry(np.ascontiguousarray(weight), entry.bias)


def _array(name: str, tensor: Tensor) -> np.ndarray:
    if not tensor.is_floating_point() or tensor.is_meta:
        raise ValueError(
            f"{name} has no floating-point weights to write (dtype {tensor.dtype}, device {tensor.device})"
        )
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name} has NaN or infinite weights: such a model is not written")
    wide = tensor.detach().cpu()
    return (wide if wide.dtype == torch.float64 else wide.float()).numpy()


def _bias(name: str, bias: Tensor | None, weight: np.ndarray) -> np.ndarray:
    """The format has a line for the bias in any case."""
    return np.zeros(weight.shape[-1], weight.dtype) if bias is None else _array(name, bias)


def _pair(value: object) -> tuple[int, int]:
    first, second = value if isinstance(value, (tuple, list)) else (value, value)
    return int(first), int(second)
