"""Losses as outputs, one for each sample or position, spelled out as logarithm, choice of the class, and sums."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastlrp.capture.graph import Constant, Value
from fastlrp.capture.translate.rewrite import Step, Steps

aten = torch.ops.aten

_IGNORED = -100
"""The class that PyTorch's losses leave out where no other is named."""


@dataclass(frozen=True)
class EntryOfClass:
    """``gather`` along axis 1 by classes, which says which class there is not."""

    whole = aten.gather.default
    """The operation whose arguments it takes."""

    def __call__(self, x: Tensor, dim: int, classes: Tensor) -> Tensor:
        count = x.shape[dim]
        if not classes.is_cuda and classes.numel():  # A GPU would have to wait, and stops by itself.
            low, high = (int(n) for n in classes.aminmax())
            if low < 0 or high >= count:
                raise IndexError(
                    f"the loss is asked for class {low if low < 0 else high}, and the scores are of {count} classes, "
                    f"0 to {count - 1}: give targets among these, or the loss's ignore_index"
                )
        return torch.gather(x, dim, classes)


def negative_log_likelihood(of_logits: bool) -> Callable[[dict[str, Any], Any], Steps | None]:
    """The negative logarithm of the probability of a sample's class, times the weight of the class.

    Of logits the logarithm of a softmax comes first. The class is an integer, a condition, and so is its weight. A
    sample of the ignored class has the loss 0. With label smoothing ``e`` the loss is ``1 - e`` of it and ``e / C`` of
    the sum over all classes.
    """

    def steps(a: dict[str, Any], shape: Any) -> Steps | None:
        scores, target, weight = a["self"], a["target"], a.get("weight")
        if a["reduction"] != 0 or not isinstance(scores, Value) or len(scores.shape) != len(shape) + 1:
            return None
        if not isinstance(target, (Value, Constant)) or not (weight is None or isinstance(weight, Constant)):
            return None
        if not isinstance(scores.shape[1], int) or not isinstance(a.get("ignore_index", _IGNORED), int):
            return None
        made = _Steps(tuple(scores.shape), tuple(shape), scores.dtype)
        logarithm: Any = scores
        if of_logits:
            logarithm = made.add(aten.log_softmax.int, "log_softmax", scores, 1, shape=made.whole)
        smoothing = a.get("label_smoothing") or 0.0
        if _is_float(target):
            made.of_probabilities(logarithm, target, weight, smoothing)
        else:
            made.of_classes(logarithm, target, weight, smoothing, a.get("ignore_index", _IGNORED))
        return made.steps

    return steps


class _Steps:
    """The steps of one loss.

    Attributes:
        whole: shape of the scores, with the classes along axis 1. each: that of the loss.
    """

    def __init__(self, whole: tuple[Any, ...], each: tuple[Any, ...], dtype: torch.dtype | None) -> None:
        self.whole, self.each, self.dtype = whole, each, dtype
        self.steps: Steps = []

    def add(self, call: Any, name: str, *args: Any, shape: Any = None, dtype: torch.dtype | None = None) -> Step:
        self.steps.append((call, name, args, {}, self.each if shape is None else shape, dtype or self.dtype))
        return Step(len(self.steps) - 1)

    def of_probabilities(self, logarithm: Any, target: Any, weight: Constant | None, smoothing: float) -> None:
        """``-sum_c w_c t_c log p_c``."""
        if smoothing:
            target = self.add(aten.mul.Tensor, "mul", target, 1 - smoothing, shape=self.whole)
            target = self.add(aten.add.Tensor, "add", target, smoothing / self.whole[1], shape=self.whole)
        product = self.add(aten.mul.Tensor, "mul", logarithm, target, shape=self.whole)
        self.add(aten.neg.default, "neg", self._summed(product, weight))

    def of_classes(self, logarithm: Any, target: Any, weight: Constant | None, smoothing: float, ignored: int) -> None:
        """``-w_t log p_t``."""
        left_out = self.add(aten.eq.Scalar, "eq", target, ignored, dtype=torch.bool)
        known = self.add(aten.masked_fill.Scalar, "masked_fill", target, left_out, 0, dtype=torch.int64)
        one = (self.whole[0], 1, *self.whole[2:])
        column = self.add(aten.unsqueeze.default, "unsqueeze", known, 1, shape=one, dtype=torch.int64)
        chosen = self.add(EntryOfClass(), "gather", logarithm, 1, column, shape=one)
        loss = self.add(aten.squeeze.dim, "squeeze", chosen, 1)
        if weight is not None:
            of_class = self.add(aten.index.Tensor, "index", weight, [known])
            loss = self.add(aten.mul.Tensor, "mul", loss, of_class)
        if smoothing:
            share = self.add(aten.mul.Tensor, "mul", self._summed(logarithm, weight), smoothing / self.whole[1])
            loss = self.add(aten.mul.Tensor, "mul", loss, 1 - smoothing)
            loss = self.add(aten.add.Tensor, "add", loss, share)
        loss = self.add(aten.masked_fill.Scalar, "masked_fill", loss, left_out, 0)
        self.add(aten.neg.default, "neg", loss)

    def _summed(self, values: Any, weight: Constant | None) -> Step:
        """Over the classes, each times its weight."""
        if weight is not None:
            form = (1, self.whole[1], *[1] * (len(self.whole) - 2))
            along = self.add(aten.reshape.default, "reshape", weight, form, shape=form)
            values = self.add(aten.mul.Tensor, "mul", values, along, shape=self.whole)
        return self.add(aten.sum.dim_IntList, "sum", values, [1])


def _is_float(target: Value | Constant) -> bool:
    return bool(target.is_float if isinstance(target, Value) else target.tensor().is_floating_point())
