"""What torch.export raised, as an error that says what to do: the model's own, if it does not take the input at all."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastlrp.capture.branches import instead_of_a_branch, reads_data
from fastlrp.capture.faults import TAKES_GRADIENTS, what_leaves_the_trace
from fastlrp.capture.input_hints import input_hints
from fastlrp.capture.trace.attributes import unchanged
from fastlrp.capture.trace.packed import packed_again
from fastlrp.capture.trace.recurrent import LENGTHS, PACKED, packs_sequences
from fastlrp.capture.trace.settings import other_attention, ways_out
from fastlrp.capture.wording import without_symbols
from fastlrp.capture.wrapper import Wrapper
from fastlrp.errors import CaptureError


def failure(wrapper: Wrapper, args: Any, kwargs: Any, error: Exception) -> CaptureError:
    """The error to raise for what torch.export raised; the model's own, if it does not take the input at all."""
    if isinstance(error, CaptureError):
        return error
    if packs_sequences(error):
        return CaptureError(PACKED)
    if reads_data(error):
        reads_sequences = any(isinstance(m, nn.RNNBase) for m in wrapper.modules())
        return CaptureError(_explain(error, (LENGTHS if reads_sequences else "") + ways_out(wrapper)))
    named = [*((str(i), leaf) for i, leaf in enumerate(args)), *kwargs.items()]
    named_here = [("x", args[0])] if len(named) == len(args) == 1 else named
    given = ", ".join(f"{name}: {tuple(t.shape)} {t.dtype}" for name, t in named_here if isinstance(t, Tensor))
    try:
        with unchanged(wrapper), packed_again():
            wrapper(args, kwargs)
    except Exception as own:
        if _runs_with_gradients(wrapper, args, kwargs):
            return CaptureError(f"the model could not be captured: {TAKES_GRADIENTS}")
        hint = input_hints(wrapper.model, named)
        failure = CaptureError(
            f"the model could not be captured: it fails on this input itself ({given}): {type(own).__name__}: "
            f"{without_symbols(str(own).strip())}.{hint}"
        )
        failure.of_input = True
        return failure
    hints = input_hints(wrapper.model, named)
    sized = "size of tensor" in str(error)
    shown = f" The input was {given}.{hints}" if hints or sized else ""
    shown += other_attention(wrapper.model) if sized and not hints else ""
    return CaptureError(_explain(error, shown + what_leaves_the_trace(error) + ways_out(wrapper)))


def _runs_with_gradients(wrapper: Wrapper, args: Any, kwargs: Any) -> bool:
    """Whether the model takes this input where gradients are recorded, having failed where they are not."""
    free = torch.utils._pytree.tree_map_only(
        Tensor, lambda t: t.detach().clone().requires_grad_(t.is_floating_point()), (args, kwargs)
    )
    try:
        with torch.inference_mode(False), torch.enable_grad(), unchanged(wrapper), packed_again():
            wrapper(*free)
    except Exception:
        return False
    return True


def _explain(error: Exception, more: str = "") -> str:
    text = str(error).strip().split("\nException raised from ")[0]  # What follows are addresses in PyTorch's libraries.
    reason = without_symbols(text.split("\n\n")[0][:800])
    hint = instead_of_a_branch(error) if reads_data(error) else ""
    return (
        f"the model could not be captured: {type(error).__name__}: {reason}.{hint}{more} "
        "fastlrp uses torch.export; `torch.export.export(model, (x,))` shows the same error with its full trace."
    )
