"""Initial relevance: what targets start with at the output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastlrp.targets.spellings import warn_if_shared

Initial = str | Callable[[Tensor], Tensor]
"""``"output"``, ``"one"``, or a function of the output."""


def given_relevance(targets: Any, output: Tensor, initial: Initial, at: Any) -> Tensor:
    """Targets that are the initial relevance itself, as ``(B, K, *output.shape[1:])`` of the output's dtype.

    Raises:
        ValueError: for another shape or device, none at all, NaN or infinity, or together with ``initial`` or ``at``.
    """
    shape = tuple(output.shape)
    relevance = targets if isinstance(targets, Tensor) else torch.as_tensor(targets, device=output.device)
    if at is not None:
        raise ValueError(
            f"targets is a {_kind(relevance)} tensor, which is the initial relevance of all positions: leave at= "
            "out, or name classes"
        )
    if initial != "output":
        raise ValueError(
            f"targets is a {_kind(relevance)} tensor, which is the initial relevance itself: leave `initial` out"
        )
    if relevance.dim() == len(shape) and tuple(relevance.shape[1:]) == shape[1:]:
        warn_if_shared(relevance, output.shape[0])
        relevance = relevance.unsqueeze(0).expand(output.shape[0], *relevance.shape)
    elif relevance.dim() != len(shape) + 1 or (relevance.shape[0], *relevance.shape[2:]) != shape:
        raise ValueError(
            f"targets as initial relevance must be (K, {_dims(shape[1:])}) or ({shape[0]}, K, {_dims(shape[1:])}) "
            f"for an output {shape}, got {tuple(relevance.shape)}"
        )
    if relevance.shape[1] == 0:
        raise ValueError("targets is empty: give at least one initial relevance")
    if relevance.device != output.device:
        raise ValueError(
            f"targets are on {relevance.device}, the model's output is on {output.device}: use targets.to(…)"
        )
    if not bool(torch.isfinite(relevance).all()):
        raise ValueError("targets (initial relevance) contain NaN or infinity: give finite numbers")
    return relevance.to(output.dtype)


def initial_values(initial: Initial, output: Tensor) -> Tensor:
    """What ``initial`` gives for each entry of the output; targets start with the values at their own entries.

    Raises:
        ValueError, TypeError: for another word, or a callable whose result is not like the output and finite.
    """
    if isinstance(initial, str):
        if initial == "output":
            return output
        if initial == "one":
            return torch.ones_like(output)
        raise ValueError(f"initial must be 'output', 'one' or a callable, got {initial!r}")
    if not callable(initial):
        raise TypeError(f"initial must be 'output', 'one' or a callable, got {type(initial).__name__}")
    values = initial(output.clone())
    if not isinstance(values, Tensor) or values.shape != output.shape:
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"initial(output) must return a tensor {tuple(output.shape)}, got {got}")
    if values.device != output.device:
        raise ValueError(f"initial(output) is on {values.device}, the model's output is on {output.device}")
    if not bool(torch.isfinite(values).all()):
        raise ValueError("initial(output) contains NaN or infinity")
    return values.to(output.dtype)


def _kind(tensor: Tensor) -> str:
    return "float" if tensor.is_floating_point() else "bool" if tensor.dtype == torch.bool else "integer"


def _dims(sizes: tuple[int, ...]) -> str:
    return ", ".join(map(str, sizes))
