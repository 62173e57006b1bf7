"""Transforms of ``torch.func`` and forward-mode derivatives, in which relevance does not take part."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad


def refuse_transforms(*tensors: Tensor) -> None:
    """Raise inside of a function that ``vmap``, ``grad``, ``jvp`` or another transform runs, or for a tangent.

    Args:
        tensors: what was given; none of them may carry a tangent of forward-mode differentiation.

    Raises:
        RuntimeError: saying what to do instead.
    """
    active = torch._C._functorch.peek_interpreter_stack()
    if active is not None and active.key() == torch._C._functorch.TransformType.Vmap:
        raise RuntimeError(
            "relevance was asked for inside of torch.vmap: give the whole batch at once, explainer(x, targets). Each "
            "sample is explained by itself, fastlrp.each gives each its own targets, and a list of targets is one pass"
        )
    tangent = forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(t).tangent is not None for t in tensors)
    if tangent or active is not None:
        raise RuntimeError(
            "relevance was asked for inside of torch.func.grad, jvp, jacrev or another transform, or of an input that "
            "carries a tangent: it has no derivative here. Explain plain tensors outside; how relevance changes with "
            "the input is a difference of two explanations"
        )
