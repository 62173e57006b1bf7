"""What is wrong with an input that a model fails on, as far as its form tells: said beside the model's own error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

_LENGTHS = ("max_position_embeddings", "n_positions", "max_length", "max_source_positions")
"""Where configurations have the number of positions that a model has embeddings for."""


def input_hints(model: nn.Module, named: Sequence[tuple[str, Any]]) -> str:
    """Sentences that each say what an input is, what was expected and what to give; empty where its form looks right.

    Args:
        named: the inputs by name.
    """
    found = []
    tensors = [(name, t) for name, t in named if isinstance(t, Tensor)]
    integers = [(name, t) for name, t in tensors if not t.is_floating_point() and not t.is_complex()]
    ids = next(((n, t) for n, t in tensors if "ids" in n and "position" not in n and "type" not in n), None)
    for name, value in named:
        if isinstance(value, (list, tuple)) and value and isinstance(value[0], (int, float, list, tuple)):
            found.append(f"Input {name!r} is a {type(value).__name__}: give torch.tensor({name})")
    for name, t in tensors:
        if t.dim() == 2 and t.shape[1] == 0:
            found.append(f"Input {name!r} is {tuple(t.shape)}, without a position: give at least one token")
    if ids is not None:
        name, t = ids
        if t.dim() == 1:
            found.append(f"Input {name!r} is {tuple(t.shape)}; ids are (batch, positions): give {name}[None]")
        if t.dtype not in (torch.int64, torch.int32):
            found.append(f"Input {name!r} is {t.dtype}; ids are integers: give {name}.long()")
        found += [_mask(other, m, name, t) for other, m in integers if "mask" in other and m.shape != t.shape]
        found += [_length(model, name, t)]
    elif _looks_up(model):
        given = [(name, t, _variable(name)) for name, t in tensors if _are_ids(t)]
        found += [f"Input {name!r} is {t.dtype}; ids are integers: give {v}.long()" for name, t, v in given]
    found += [_channels(model, name, t) for name, t in tensors if "embeds" in name]
    devices = {p.device.type: n for n, p in model.named_parameters()}
    if len(devices) > 1:
        where = ", ".join(f"'{name}' on {device}" for device, name in devices.items())
        found.append(f"The model's parameters are on several devices, {where}: move all to one, model.to(…)")
    return "".join(f" {sentence}." for sentence in found if sentence)


def _mask(name: str, mask: Tensor, ids: str, text: Tensor) -> str:
    return (
        f"Input {name!r} is {tuple(mask.shape)} and {ids!r} {tuple(text.shape)}: masks and ids have one size along "
        f"positions, a mask has one number for each token, {tuple(text.shape)}"
    )


def _length(model: nn.Module, name: str, ids: Tensor) -> str:
    config = getattr(model, "config", None)
    lengths = [getattr(config, word, None) for word in _LENGTHS]
    whole = next((n for n in lengths if isinstance(n, int)), None)
    if whole is None or ids.dim() < 2 or ids.shape[1] <= whole:
        return ""
    cut = f"cut it, {name}[:, :{whole}]"
    return f"Input {name!r} has {ids.shape[1]} positions, the model has embeddings for {whole}: {cut}"


def _channels(model: nn.Module, name: str, rows: Tensor) -> str:
    of_model: Any = getattr(model, "get_input_embeddings", None)
    table: Any = of_model() if callable(of_model) else None
    width = getattr(table, "embedding_dim", None)
    if width is None or rows.shape[-1] == width:
        return ""
    return f"Input {name!r} is {tuple(rows.shape)}: embeddings of this model are (batch, positions, {width})"


def _are_ids(t: Tensor) -> bool:
    """Whether whole numbers came as floats or truth values."""
    return t.dtype == torch.bool or (t.is_floating_point() and not t.is_meta and bool((t == t.round()).all()))


def _looks_up(model: nn.Module) -> bool:
    """Whether the model's first layer looks rows up."""
    leaves = (m for m in model.modules() if not list(m.children()))
    return isinstance(next(leaves, None), (nn.Embedding, nn.EmbeddingBag))


def _variable(name: str) -> str:
    """How a person would write the input."""
    return "x" if name.isdigit() else name
