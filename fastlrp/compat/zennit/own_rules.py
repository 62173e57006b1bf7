"""What some of Zennit's hooks do where fastlrp has no rule of that name: written out, one method each."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastlrp.compat.zennit import notices, recognise
from fastlrp.kinds.jacobian import vjp
from fastlrp.rules import Custom
from fastlrp.stabilizer import Stabilizer


@dataclass(frozen=True)
class Proportional(Custom):
    """``R_in = x * J^T (R / st(y))`` at any operation: Zennit's ``Norm`` and ``Epsilon`` away from weights."""

    stabilizer: Stabilizer

    linear_in_relevance = True

    def propagate(
        self, forward: Callable[..., Tensor], inputs: tuple[Tensor, ...], output: Tensor, relevance: Tensor
    ) -> tuple[Tensor | None, ...]:
        share = relevance * self.stabilizer.reciprocal(output).unsqueeze(1)
        return (inputs[0].unsqueeze(1) * vjp(forward, inputs, share)[0],)


@dataclass(frozen=True)
class BetaSmooth(Custom):
    """``R_in = sigmoid(beta x) R``: the slope of a softplus in the place of a ReLU's.

    Source: Dombrowski et al. 2019.
    """

    beta: float

    linear_in_relevance = True

    def propagate(
        self, forward: Callable[..., Tensor], inputs: tuple[Tensor, ...], output: Tensor, relevance: Tensor
    ) -> tuple[Tensor | None, ...]:
        return (relevance * torch.sigmoid(self.beta * inputs[0]).unsqueeze(1),)


class AsItIs(Custom):
    """A hook that is none of Zennit's rules, run as Zennit runs it: once for each target, with its own arithmetic.

    Args:
        template: the hook that the composite gave.
        module: the module that it stands on; the hook gets a copy.
        path: of that module, for errors.
    """

    def __init__(self, template: Any, module: nn.Module, path: str) -> None:
        notices.refuse_own_steps(template, path)
        self.template, self.path, self._told = template, path, False
        self.module = copy.deepcopy(module)

    def __repr__(self) -> str:
        return f"{type(self.template).__name__} as it is"

    def propagate(
        self, forward: Callable[..., Tensor], inputs: tuple[Tensor, ...], output: Tensor, relevance: Tensor
    ) -> tuple[Tensor | None, ...]:
        # A hook may look at the whole batch of relevance, so targets cannot go through it side by side.
        found = [self._one(forward, inputs[0], relevance[:, k]) for k in range(relevance.shape[1])]
        return (torch.stack(found, 1),)

    def _one(self, forward: Callable[..., Tensor], x: Tensor, relevance: Tensor) -> Tensor:
        hook, basic = self.template.copy(), recognise.core().BasicHook
        own = dict(vars(hook))
        with torch.inference_mode(False):
            point = x.clone() if x.is_inference() else x.detach()
            arriving = relevance.clone() if relevance.is_inference() else relevance.detach()
            if type(hook).backward is basic.backward and type(hook).forward is basic.forward:
                below = point  # Which it only measures: the layer's own gradient need not be computed.
                recognise.call_forward(hook, self.module, point, None)
            else:
                with torch.enable_grad():
                    y = forward(point.requires_grad_())
                    recognise.call_forward(hook, self.module, point, y)
                    (below,) = torch.autograd.grad(y, point, arriving.contiguous())
            hook.stored_tensors["grad_output"] = (arriving,)
            with torch.no_grad():
                result = hook.backward(self.module, (below,), (arriving,))
        self._told = self._told or notices.kept_state(hook, own, self.path)
        found = result[0] if isinstance(result, tuple) and result else result
        found = below if found is None else found
        if not isinstance(found, Tensor) or found.shape != x.shape:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"the hook {type(self.template).__name__} at {self.path or 'the model itself'!r} returned relevance "
                f"{got} for an input {tuple(x.shape)}: they must have the same shape"
            )
        return found.detach()
