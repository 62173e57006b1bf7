"""What to explain: from what a user writes to blocks of initial relevance."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Initial = str | Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class OneHot:
    """Initial relevance with one entry per sample and target, on an output ``(B, C)``.

    Attributes:
        index: ``(B, K)`` class. value: ``(B, K)`` relevance there. classes: C.
    """

    index: Tensor
    value: Tensor
    classes: int

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.index.shape, self.classes))

    def dense(self) -> Tensor:
        """``(B, K, C)``."""
        zero = self.value.new_zeros(self.shape)
        return zero.scatter_(2, self.index.unsqueeze(2), self.value.unsqueeze(2))

    def narrow(self, dim: int, start: int, length: int) -> OneHot:
        """A block of targets."""
        assert dim == 1, "only the target axis can be cut"
        return OneHot(self.index.narrow(1, start, length), self.value.narrow(1, start, length), self.classes)


class Targets:
    """K targets of one output.

    Args:
        targets: an int; a sequence, range or 1-D integer tensor of K classes; a 2-D ``(B, K)`` integer tensor;
            ``"all"``; ``"top5"``; or a float or bool tensor ``(K, *output.shape[1:])`` or
            ``(B, K, *output.shape[1:])`` that is the initial relevance itself, which an integer tensor may be too
            where it can't be classes, see :func:`is_relevance`. On outputs with more axes a class is an index of
            axis 1.
        output: the model's output ``(B, C, …)``.
        initial: ``"output"`` (the target's own score), ``"one"``, or a callable from the output to initial relevance
            of the output's shape, of which the target picks its entries.

    Raises:
        IndexError: for a class that the output does not have.
        ValueError, TypeError: for anything else that does not fit; the message says what would.
    """

    def __init__(self, targets: Any, output: Tensor, initial: Initial = "output") -> None:
        if output.dim() < 1 or not output.is_floating_point():
            raise ValueError(
                f"the output to explain must be a float tensor (B, C, …), got {tuple(output.shape)} {output.dtype}"
            )
        self.output = output
        self.batch = output.shape[0]
        self.classes = output.shape[1] if output.dim() > 1 else 1
        self.index: Tensor | None = None
        self.given: Tensor | None = None
        if self._is_relevance(targets):
            self.given = self._given(targets, initial)
        else:
            self.index = self._classes(targets)
            self.values = self._initial_values(initial)
            if output.dim() < 2:
                # (B,): one score per sample, every target is that one.
                self.given, self.index = self.values.unsqueeze(1).expand(-1, self.index.shape[1]), None
        chosen = self.index if self.index is not None else self.given
        assert chosen is not None
        self.count = chosen.shape[1]

    def _is_relevance(self, targets: Any) -> bool:
        return is_relevance(targets, tuple(self.output.shape))

    def _given(self, targets: Any, initial: Initial) -> Tensor:
        shape = tuple(self.output.shape)
        relevance = targets if isinstance(targets, Tensor) else torch.as_tensor(targets, device=self.output.device)
        if initial != "output":
            raise ValueError(
                f"targets is a {_kind(relevance)} tensor, which is the initial relevance itself: leave `initial` out"
            )
        if relevance.dim() == len(shape) and tuple(relevance.shape[1:]) == shape[1:]:
            relevance = relevance.unsqueeze(0).expand(self.batch, *relevance.shape)
        elif relevance.dim() != len(shape) + 1 or (relevance.shape[0], *relevance.shape[2:]) != shape:
            raise ValueError(
                f"targets as initial relevance must be (K, {_dims(shape[1:])}) or ({shape[0]}, K, {_dims(shape[1:])}) "
                f"for an output {shape}, got {tuple(relevance.shape)}"
            )
        if relevance.shape[1] == 0:
            raise ValueError("targets is empty: give at least one initial relevance")
        if relevance.device != self.output.device:
            raise ValueError(f"targets are on {relevance.device}, the model's output is on {self.output.device}")
        if not bool(torch.isfinite(relevance).all()):
            raise ValueError("targets (initial relevance) contain NaN or infinity")
        return relevance.to(self.output.dtype)

    def _classes(self, targets: Any) -> Tensor:
        classes, device = self.classes, self.output.device
        if isinstance(targets, str):
            return self._named(targets)
        try:
            index = torch.as_tensor(list(targets) if isinstance(targets, range) else targets, device=device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"targets must be an int, classes, 'all', 'top5' or initial relevance: {error}") from error
        if index.dim() and index.shape[-1] == 0:
            raise ValueError("targets is empty: name at least one class")
        if index.dtype == torch.bool or index.is_floating_point() or index.is_complex():
            raise TypeError(f"targets given as classes must be integers, got {index.dtype}")
        index = index.long()
        if index.dim() == 0:
            index = index.unsqueeze(0)
        if index.dim() == 1:
            index = index.unsqueeze(0).expand(self.batch, -1)
        if index.dim() != 2 or index.shape[0] != self.batch:
            raise ValueError(f"targets per sample must be (B, K) = ({self.batch}, K), got {tuple(index.shape)}")
        if index.numel() and (int(index.min()) < 0 or int(index.max()) >= classes):
            wrong = int(index.min()) if int(index.min()) < 0 else int(index.max())
            has = f"has {classes} classes, 0 to {classes - 1}" if classes > 1 else "has one class, 0"
            raise IndexError(f"target {wrong} is out of range: the output {tuple(self.output.shape)} {has}")
        return index

    def _named(self, name: str) -> Tensor:
        classes = self.classes
        if name == "all":
            return torch.arange(classes, device=self.output.device).expand(self.batch, -1)
        match = re.fullmatch(r"top(\d+)", name)
        if match is None or int(match[1]) == 0:
            raise ValueError(f"targets {name!r} is not known: use 'all' or 'top5' (any number)")
        k = int(match[1])
        if k > classes:
            raise IndexError(f"targets {name!r} asks for {k} classes, the output has {classes}")
        if self.output.dim() == 1:
            return torch.zeros((self.batch, 1), dtype=torch.long, device=self.output.device)
        if self.output.dim() != 2:
            raise ValueError(f"targets {name!r} needs an output (B, C), got {tuple(self.output.shape)}")
        return self.output.topk(k, dim=1).indices

    def _initial_values(self, initial: Initial) -> Tensor:
        if isinstance(initial, str):
            if initial == "output":
                return self.output
            if initial == "one":
                return torch.ones_like(self.output)
            raise ValueError(f"initial must be 'output', 'one' or a callable, got {initial!r}")
        if not callable(initial):
            raise TypeError(f"initial must be 'output', 'one' or a callable, got {type(initial).__name__}")
        values = initial(self.output.clone())
        if not isinstance(values, Tensor) or values.shape != self.output.shape:
            got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(f"initial(output) must return a tensor {tuple(self.output.shape)}, got {got}")
        if values.device != self.output.device:
            raise ValueError(f"initial(output) is on {values.device}, the model's output is on {self.output.device}")
        if not bool(torch.isfinite(values).all()):
            raise ValueError("initial(output) contains NaN or infinity")
        return values.to(self.output.dtype)

    def block(self, start: int, length: int, one_hot: bool = False) -> Tensor | OneHot:
        """Initial relevance ``(B, length, *output.shape[1:])`` of targets ``start`` to ``start + length - 1``."""
        if self.given is not None:
            return self.given.narrow(1, start, length)
        assert self.index is not None
        index = self.index.narrow(1, start, length)
        if self.output.dim() == 2:
            picked = OneHot(index, self.values.gather(1, index), self.output.shape[1])
            return picked if one_hot else picked.dense()
        tail = self.output.shape[2:]
        where = index.view(*index.shape, 1, *(1,) * len(tail)).expand(*index.shape, 1, *tail)
        zero = self.output.new_zeros(self.batch, length, *self.output.shape[1:])
        picked_values = self.values.unsqueeze(1).expand(-1, length, *self.values.shape[1:]).gather(2, where)
        return zero.scatter_(2, where, picked_values)


def is_relevance(targets: Any, shape: tuple[int, ...]) -> bool:
    """Whether ``targets`` are initial relevance, not classes, for an output of this shape ``(B, C, …)``.

    Tensors and arrays of floats or bools always are. Those of integers are where they can't be classes: with three or
    more axes, or as zeros and ones of shape ``(K, C)`` with another K than B. Everything else is classes, lists of
    integers always. Zeros and ones that could be either are refused.

    Raises:
        ValueError: for an integer tensor that may be one-hot relevance as well as classes; the message shows how to
            write the one and the other.
    """
    if not hasattr(targets, "dtype"):
        return False
    tensor = targets if isinstance(targets, Tensor) else torch.as_tensor(targets)
    if tensor.is_floating_point() or tensor.dtype == torch.bool:
        return True
    if tensor.is_complex() or len(shape) < 2 or tensor.dim() == 0 or not tensor.numel():
        return False
    if tensor.dim() > 2:
        return True
    batch, classes = shape[:2]
    if len(shape) > 2 or tensor.shape[-1] != classes or bool(((tensor != 0) & (tensor != 1)).any()):
        return False
    hot = (tensor == 1).sum(-1)
    if tensor.dim() == 2 and tensor.shape[0] != batch:
        return bool((hot > 0).all())
    if tensor.dim() == 1:  # Two classes, [0, 1], are all classes: (C,) is no form of relevance.
        if classes > 2 and int(hot) == 1:
            raise ValueError(
                f"targets is an integer tensor of {classes} zeros and a one: write targets.tolist() if these are "
                f"{classes} classes, targets[None] * 1.0 if it is the initial relevance of one target"
            )
        return False
    if bool((hot > 0).all()) and (classes > 2 or bool((hot == 1).all())) and classes > 1:
        raise ValueError(
            f"targets is an integer tensor {tuple(tensor.shape)} of zeros and ones, the shape of the output, which may "
            "be classes or one-hot relevance: write targets.tolist() if these are K classes of each sample, "
            "targets.unsqueeze(1) if each sample has one initial relevance, targets.float() if these are K of them "
            "for all samples"
        )
    return False


def _kind(tensor: Tensor) -> str:
    return "float" if tensor.is_floating_point() else "bool" if tensor.dtype == torch.bool else "integer"


def _dims(sizes: tuple[int, ...]) -> str:
    return ", ".join(map(str, sizes))
