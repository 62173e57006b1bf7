"""The token ids among the inputs of a model, whose next tokens are targets."""

from __future__ import annotations

from torch import Tensor

from fastlrp.run.inputs import Inputs

_OTHER = ("mask", "type", "position")
"""Parts of the names of integer inputs that are no ids."""


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
