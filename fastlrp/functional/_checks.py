"""What the public operations ask of their arguments. Every message names the argument, what was expected, what came."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def check_float(op: str, name: str, value: Tensor) -> None:
    """A tensor of real numbers.

    Raises:
        TypeError: otherwise.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(value).__name__}")
    if not value.dtype.is_floating_point:
        raise TypeError(
            f"{op}: {name} must have a floating-point dtype, got {value.dtype}; convert it, for example with .float()"
        )


def check_dim(op: str, name: str, value: Tensor, layout: str, least: int, most: int | None = None) -> None:
    """A number of axes.

    Raises:
        ValueError: otherwise.
    """
    if value.dim() < least or (most is not None and value.dim() > most):
        hint = (
            "; the target axis K is always there: relevance.unsqueeze(1) adds it for one target"
            if name == "relevance" and value.dim() == least - 1
            else ""
        )
        raise ValueError(f"{op}: {name} must have shape {layout}, got {tuple(value.shape)}{hint}")


def check_like(
    op: str, name: str, value: Tensor | None, layout: str, shape: Sequence[int], like: Tensor, dtype: torch.dtype
) -> None:
    """Shape, dtype and device of an argument that goes with ``like``; None passes.

    Raises:
        TypeError: if it is no tensor or has another dtype.
        ValueError: if it has another shape or is on another device.
    """
    if value is None:
        return
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor or None, got {type(value).__name__}")
    if tuple(value.shape) != tuple(shape):
        raise ValueError(f"{op}: {name} must have shape {layout} = {tuple(shape)}, got {tuple(value.shape)}")
    if value.dtype != dtype:
        raise TypeError(f"{op}: {name} must have dtype {dtype}, got {value.dtype}; convert it with .to({dtype})")
    if value.device != like.device:
        raise ValueError(f"{op}: {name} must be on {like.device}, got {value.device}; move it with .to({like.device})")


def check_terms(
    op: str, u: Tensor | None, v: Tensor | None, input: Tensor | None, signed: bool, multiply: bool
) -> None:
    """That an affine operation has a term, and the input where a term needs it.

    Raises:
        ValueError: otherwise.
    """
    if u is None and v is None:
        raise ValueError(f"{op}: u or v must be given, got None for both; elementwise_coefficients makes them")
    if input is None and multiply:
        raise ValueError(f"{op}: input must be given for multiply=True, got None; pass the layer's input")
    if input is None and signed and v is not None:
        raise ValueError(
            f"{op}: input must be given for signed=True with v, got None; pass the layer's input, or signed=False if "
            "it is nowhere negative"
        )


def sizes(op: str, name: str, value: int | Sequence[int], axes: int, least: int) -> list[int]:
    """One integer per spatial axis; a single number stands for all.

    Raises:
        TypeError: if it is something else.
        ValueError: if there are too many, too few, or one is less than ``least``.
    """
    listed = [value] * axes if isinstance(value, int) else list(value) if isinstance(value, (tuple, list)) else None
    if listed is None or not all(isinstance(n, (int, torch.SymInt)) and not isinstance(n, bool) for n in listed):
        raise TypeError(f"{op}: {name} must be an integer or a list of {axes}, got {value!r}")
    if len(listed) != axes or any(n < least for n in listed):
        raise ValueError(f"{op}: {name} must have {axes} entries, each at least {least}, got {value!r}")
    return listed


def check_map(op: str, relevance: Tensor) -> int:
    """Relevance of a map, ``(B, K, C, *S')``; returns the number of spatial axes.

    Raises:
        TypeError, ValueError: otherwise.
    """
    check_float(op, "relevance", relevance)
    check_dim(op, "relevance", relevance, "(B, K, C, *S') with one to three spatial sizes S'", 4, 6)
    return relevance.dim() - 3


def check_output_size(op: str, relevance: Tensor, expected: Sequence[int], input_size: Sequence[int]) -> None:
    """That the relevance has the spatial size which the layer makes of ``input_size``.

    Raises:
        ValueError: otherwise.
    """
    if list(relevance.shape[3:]) != list(expected):
        raise ValueError(
            f"{op}: relevance must have spatial size {list(expected)}, which is what this layer makes of "
            f"input_size={list(input_size)}, got {list(relevance.shape[3:])}; pass the arguments of the layer itself"
        )
