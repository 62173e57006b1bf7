"""What stands for packed sequences in an exported program: a recurrent layer, and which steps are valid."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

PADDED = "fastlrp_capture::padded"
"""The operation that stands for a recurrent layer of sequences of several lengths."""
VALID = "fastlrp_capture::valid_steps"
"""The operation that says which steps are valid, where sequences are unpacked."""

_LIBRARY = torch.library.Library("fastlrp_capture", "DEF")  # The operations live as long as it does.
_LIBRARY.define(
    "padded(str mode, Tensor input, Tensor lengths, Tensor[] hx, Tensor[] params, bool has_biases, int num_layers, "
    "float dropout, bool train, bool bidirectional, bool ordered) -> (Tensor, Tensor, Tensor)"
)
_LIBRARY.define("valid_steps(Tensor lengths, int steps, bool cut, bool ordered) -> Tensor")


def _shapes(
    mode: str, input: Tensor, lengths: Tensor, hx: list[Tensor], params: list[Tensor], has_biases: bool,
    num_layers: int, dropout: float, train: bool, bidirectional: bool, ordered: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    h = hx[0]
    y = input.new_empty(input.shape[0], input.shape[1], h.shape[2] * (2 if bidirectional else 1))
    return y, torch.empty_like(h), torch.empty_like(hx[-1])


def valid_steps(lengths: Tensor, steps: int, cut: bool, ordered: bool) -> Tensor:
    """Which steps are valid, ``(B, T)`` of ``lengths (B,)``.

    ``cut``: whether the model cuts its sequences to the longest. ``ordered``: whether it wants the longest first.
    """
    return torch.arange(steps, device=lengths.device) < lengths.unsqueeze(-1)


_LIBRARY.impl("valid_steps", valid_steps, "CompositeExplicitAutograd")
torch.library.register_fake("fastlrp_capture::padded", _shapes, lib=_LIBRARY)
torch.library.register_fake("fastlrp_capture::valid_steps", valid_steps, lib=_LIBRARY)

layer_call: Any = torch.ops.fastlrp_capture.padded
"""A recurrent layer of padded sequences and their lengths, as a trace records it."""
valid_steps_call: Any = torch.ops.fastlrp_capture.valid_steps
""":func:`valid_steps`, as a trace records it."""
