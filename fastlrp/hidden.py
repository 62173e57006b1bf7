"""Hidden neurons as outputs: what a channel looks at, and relevance that passes through chosen channels alone."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastlrp.errors import CaptureError

_FOLDED_INTO = (nn.Linear, nn.modules.conv._ConvNd)
"""Modules that a batch norm behind them becomes a part of."""


class Hidden(nn.Module):
    """A model up to one of its modules: that module's output in the place of the model's.

    It has the model's modules and parameters under their own paths, so that composites and ``layers=`` name the same as
    in the model, and takes the model's inputs. Nothing is copied or changed.

    Args:
        model: any ``nn.Module``.
        path: of the module, as in ``model.named_modules()``.
        call: which of several calls of it, from 0.

    Raises:
        TypeError: for a model that is none. ValueError: for a path that it does not have. When called, RuntimeError: if
            the forward pass calls the module less often; :class:`fastlrp.CaptureError`: for a convolution or linear
            layer that a batch norm follows, which is folded into it.

    Example::

        neurons = fastlrp.Explainer(outputs.Hidden(model, "3"), "epsilon_plus")
        looks_at = neurons(x, 7)  # what makes channel 7 active: relevance of its sum over all places
        there = neurons(x, 7, at=(4, 2))  # and at one place
    """

    def __init__(self, model: nn.Module, path: str, call: int = 0) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        if not isinstance(path, str):
            raise TypeError(f"path must be the path of a module, such as '0' or 'layer4', got {path!r:.80}")
        modules = dict(model.named_modules())
        if path == "":
            raise ValueError("'' is the model itself: explain it as it is")
        if path not in modules:
            close = difflib.get_close_matches(path, modules, 3)
            hint = f": close to it is {' or '.join(map(repr, close))}" if close else ""
            raise ValueError(f"the model has no module {path!r}{hint}")
        self._modules, self._parameters, self._buffers = model._modules, model._parameters, model._buffers
        self._of = (model, path, call)  # In a tuple: as a module of its own the model would change all paths.
        self.training = model.training

    @property
    def forward(self) -> Any:  # type: ignore[override]
        """Gives the output of the module in the model's forward pass; its signature is that of the model's forward."""
        return functools.update_wrapper(functools.partial(self._run), self._of[0].forward)

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        model, path, call = self._of
        named = model.get_submodule(path)
        found: list[Any] = []
        of_layer: list[Any] = []

        def reached(module: nn.Module, given: Any, output: Any) -> None:
            if len(found) != call:
                found.append(None)
                return
            if isinstance(named, _FOLDED_INTO):
                of_layer.append(output)
            # Copies: what stands above may write into the output, as nn.ReLU(inplace=True) does.
            found.append(torch.utils._pytree.tree_map_only(Tensor, Tensor.clone, output))

        handle = named.register_forward_hook(reached)
        try:
            with _RefusedNorms(model, path, of_layer):
                model(*args, **kwargs)  # To its end: torch.export cannot follow a pass that is cut off.
        finally:
            handle.remove()
        if not found:
            raise RuntimeError(f"the forward pass does not call {path!r}")
        if len(found) <= call:
            raise RuntimeError(f"the forward pass calls {path!r} {len(found)} times, and call={call} counts from 0")
        return found[call]

    def extra_repr(self) -> str:
        """Up to where: ``"'layer3'"``."""
        _, path, call = self._of
        return f"{path!r}, call={call}" if call else repr(path)


class _RefusedNorms(TorchFunctionMode):
    """Refuses a batch norm, a module or none, of what a layer gave: it would be folded into that layer."""

    def __init__(self, model: nn.Module, path: str, of_layer: list[Any]) -> None:
        super().__init__()
        self._model, self._path, self._of_layer = model, path, of_layer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (nn.functional.batch_norm, torch.batch_norm):
            input = args[0] if args else kwargs["input"]
            if any(input is y for y in self._of_layer):
                raise CaptureError(self._why((*args, *kwargs.values())))
        return func(*args, **kwargs)

    def _why(self, given: tuple[Any, ...]) -> str:
        tensors = [x for x in given if isinstance(x, Tensor)]
        norms = ((n, m) for n, m in self._model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
        norm = next((n for n, m in norms if any(x is m.running_mean or x is m.weight for x in tensors)), None)
        what = "a batch norm that no module stands for" if norm is None else f"the batch norm {norm!r}"
        instead = "that of a module behind it" if norm is None else f"Hidden(model, {norm!r})"
        return (
            f"{what} is part of {self._path!r}, whose weights the rules see with it: without it they would see others "
            f"than in the model. Take its output, {instead}"
        )


def through_channels(relevance: Tensor, channels: Sequence[int] | Tensor, axis: int = 2) -> Tensor:
    """Initial relevance that is a layer's in one channel and 0 in all others, for each of some channels.

    Given to an explainer of :class:`Hidden` it is what concept relevance propagation computes: the relevance of the
    input as far as it passes through that channel. All channels add up to the whole.

    Args:
        relevance: of the layer, ``explainer(x, targets, layers=[path])[path]``, ``(B, K, C, …)``.
        channels: P of them, ``(P)``; each sample's own, ``(B, P)``; or each target's too, ``(B, K, P)``.
        axis: where channels are; -1 in layers ``(B, S, D)`` of transformers.

    Returns:
        ``(B, K * P, C, …)``, the channels of the first target first.

    Raises:
        ValueError, TypeError, IndexError: for shapes, channels or an axis that do not fit.

    Example::

        found = explainer(x, 3, layers=["3"])["3"]  # (B, 1, C, H, W)
        best = found.sum((-2, -1)).topk(4).indices  # (B, 1, 4)
        of_each = neurons(x, outputs.through_channels(found, best))  # (B, 4, *x.shape[1:])
    """
    if relevance.dim() < 3:
        raise ValueError(f"relevance must be (B, K, C, …), got {tuple(relevance.shape)}")
    batch, targets = relevance.shape[:2]
    place = axis + relevance.dim() if axis < 0 else axis
    if place < 2 or place >= relevance.dim():
        raise IndexError(f"axis={axis} of relevance {tuple(relevance.shape)} is no axis of channels")
    index = torch.as_tensor(list(channels) if isinstance(channels, range) else channels, device=relevance.device)
    if index.numel() == 0:
        raise ValueError("channels is empty: name at least one")
    if index.dtype.is_floating_point or index.dtype == torch.bool:
        raise TypeError(f"channels must be integers, got {index.dtype}")
    index = index.view(1, 1, -1) if index.dim() == 1 else index.unsqueeze(1) if index.dim() == 2 else index
    if index.dim() != 3 or index.shape[0] not in (1, batch) or index.shape[1] not in (1, targets):
        given = tuple(torch.as_tensor(channels).shape)
        raise ValueError(f"channels must be (P), ({batch}, P) or ({batch}, {targets}, P), got {given}")
    count = relevance.shape[place]
    wrong = index[(index < 0) | (index >= count)]
    if wrong.numel():
        raise IndexError(f"channel {int(wrong[0])} is out of range: axis {place} has {count} entries, 0 to {count - 1}")
    index = index.expand(batch, targets, -1)
    chosen = torch.nn.functional.one_hot(index, count).bool()  # (B, K, P, C)
    shape = [batch, targets, index.shape[2], *[1] * (relevance.dim() - 2)]
    shape[place + 1] = count
    return torch.where(chosen.view(shape), relevance.unsqueeze(2), 0).flatten(1, 2)
