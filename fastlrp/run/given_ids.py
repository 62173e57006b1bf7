"""The token ids among the inputs of a model, whose next tokens are targets."""

from __future__ import annotations

import re
import warnings
from typing import Any

from torch import Tensor

from fastlrp.run.inputs import Inputs
from fastlrp.targets.spellings import NextTokens

_OTHER = ("mask", "type", "position")
"""Parts of the names of integer inputs that are no ids."""


def note_index(error: Exception, inputs: Inputs) -> None:
    """Say which input holds the index that an operation of a forward pass has found out of range."""
    found = re.search(r"index (-?\d+) is out of bounds for dimension \d+ with size (\d+)", str(error))
    if found is None:
        return
    index, size = int(found[1]), int(found[2])
    holders = [
        name
        for name, tensor in zip(inputs.names, inputs.tensors, strict=True)
        if not tensor.is_floating_point() and tensor.numel() and bool((tensor == index).any())
    ]
    for name in [n for n in holders if "position" in n] or holders:  # The tables of ids have a check of their own.
        error.add_note(f"input {name!r} holds {index}, and indices go from 0 to {size - 1} there")


_WARNED: set[type] = set()


def warn_without_positions(inputs: Inputs, output: Tensor, targets: Any, at: Any) -> None:
    """Say once per process that targets without ``at`` are positions of a text, all scores there together."""
    if at is not None or output.dim() != 3 or Inputs in _WARNED or isinstance(targets, (NextTokens, str)):
        return
    if hasattr(targets, "dtype") and getattr(targets, "ndim", 0) > 1:
        return
    if any(
        name.endswith("input_ids") and t.shape == output.shape[:2]
        for name, t in zip(inputs.names, inputs.tensors, strict=True)
    ):
        _WARNED.add(Inputs)
        warnings.warn(
            f"the output {tuple(output.shape)} has scores at each of the {output.shape[1]} positions of the text, and "
            "without at= a target is one of these positions with all its scores together: name classes by at=, at=-1 "
            "for the last token",
            UserWarning,
            stacklevel=3,
        )


def ids_of(inputs: Inputs, output: Tensor) -> Tensor:
    """The ids ``(B, S)`` of the text whose positions the output ``(B, S, V)`` has.

    Of several integer inputs of that shape it is the one whose name ends in ``input_ids``, a decoder's first.

    Raises:
        ValueError: without such an input, or with several that may be it; the message says what to give instead.
    """
    way_out = "give targets=fastlrp.next_tokens(ids)"
    if output.dim() != 3:
        raise ValueError(
            f"targets 'next' are next tokens at the positions of an output (B, S, V), and the output explained here is "
            f"{tuple(output.shape)}"
        )
    found = {
        name: tensor
        for name, tensor in zip(inputs.names, inputs.tensors, strict=True)
        if not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype.itemsize < 4)
        and tuple(tensor.shape) == tuple(output.shape[:2])
    }
    for wanted in ("decoder_input_ids", "input_ids"):
        if wanted in found:
            return found[wanted]
    likely = {name: tensor for name, tensor in found.items() if not any(word in name for word in _OTHER)}
    if len(likely) == 1:
        return next(iter(likely.values()))
    if likely:
        raise ValueError(f"targets 'next' may be the tokens of any of the inputs {', '.join(likely)}: {way_out}")
    raise ValueError(
        f"targets 'next' needs the token ids among the inputs, integers {tuple(output.shape[:2])} as the output "
        f"{tuple(output.shape)} has positions, and there are none: {way_out}"
    )
