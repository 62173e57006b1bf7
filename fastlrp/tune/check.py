"""Whether what a configuration computes is right, before its time counts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fastlrp.backends import dispatch
from fastlrp.tune import attention

_IEEE = 1e-5
_TF32 = 2.0**-11
_CHECKED_TARGETS = 4

Result = Tensor | tuple[Tensor, ...]
"""Of a call."""


class Check:
    """Whether a result is the ``torch`` backend's, for some of the targets.

    float32 without tensor cores has to agree to 1e-5; others may have twice the error that the ``torch`` backend has
    with the same products, measured against float32 without tensor cores, or half a unit of what products read, where
    its products happen to be exact. Of several results the worst counts.
    """

    def __init__(self, op: str, arguments: tuple[Any, ...], kind: str) -> None:
        flow, part = arguments[0], arguments
        self._targets: list[int] | None = None
        if op not in (attention.WITHOUT_TARGETS, attention.UP):
            count = flow.shape[1]
            self._targets = sorted({round(i * (count - 1) / (_CHECKED_TARGETS - 1)) for i in range(_CHECKED_TARGETS)})
            part = (flow[:, self._targets], *arguments[1:])
        plain = dispatch.select(op, "torch", flow.device, flow.dtype).call
        with precision("ieee"):
            exact = dispatch.select(op, "torch", flow.device, torch.float32).call
            self._expected = _several(exact(*(_wide(a) for a in part)))
        unit = _TF32 if kind == "tf32" else torch.finfo(flow.dtype).eps / 2
        self._allowed = _IEEE if kind == "ieee" else max(2 * self._error(plain(*part)), unit) + _IEEE

    def _error(self, result: Result) -> float:
        found = []
        for got, expected in zip(_several(result), self._expected, strict=True):
            size = float(expected.norm())
            found.append(float((got.float() - expected).norm()) / (size or 1.0))
        return max(found)

    def __call__(self, result: Result) -> str:
        """What is wrong with a result; empty if nothing is."""
        if self._targets is not None:
            result = tuple(t[:, self._targets] for t in _several(result))
        error = self._error(result)
        return "" if error <= self._allowed else f"relative error {error:.1e}, allowed {self._allowed:.1e}"


def _several(result: Result) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def _wide(argument: Any) -> Any:
    if isinstance(argument, (list, tuple)):
        return [_wide(item) for item in argument]
    return argument.float() if isinstance(argument, Tensor) and argument.is_floating_point() else argument


@contextmanager
def precision(kind: str) -> Iterator[None]:
    """PyTorch's switches for float32 products."""
    backends = torch.backends
    before = backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32
    backends.cudnn.allow_tf32 = backends.cuda.matmul.allow_tf32 = kind == "tf32"
    try:
        yield
    finally:
        backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32 = before
