"""Results of a ``torch.autograd.Function``: relevance goes on as it is, a gradient is the function's own backward.

The node's first input is the result, which the operations of the function's forward make; the others are what the
function read. Relevance goes to the first, and a gradient to the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastlrp import rules
from fastlrp.capture.bind import bind_forward
from fastlrp.capture.graph import Node, Value, leaves
from fastlrp.errors import UnsupportedOperationError, module_text
from fastlrp.kinds import textbook
from fastlrp.kinds.chained import pass_on
from fastlrp.kinds.kind import Kind
from fastlrp.kinds.textbook import Share, Walk
from fastlrp.plan.builder import Builder
from fastlrp.plan.steps import Flow
from fastlrp.plan.total import multiply
from fastlrp.rules.gradient import GRADIENTS


def lower(b: Builder, node: Node, rule: rules.Rule, flow: Flow) -> None:
    """What arrives to the result, or what the backward makes of it to what the function read."""
    if isinstance(rule, GRADIENTS):
        _send_gradient(b, node, flow)
    elif isinstance(rule, rules.Pass):
        y = node.args[0]
        if y in node.sources:
            pass_on(b, flow, node.output, y)
    else:
        raise UnsupportedOperationError(
            f"{rule} cannot be applied to {node}: use Pass (the operations of its forward) or Gradient (its backward)"
        )


def _send_gradient(b: Builder, node: Node, flow: Flow) -> None:
    read = _read(node)
    missing = next((v for v in (node.output, *read) if not v.has_batch_first), None)
    if missing is not None:
        raise UnsupportedOperationError(
            f"the backward of {_name(node)} gives no gradient of one sample alone: a tensor of shape "
            f"{tuple(missing.shape)} that it reads or gives does not keep the batch as axis 0"
        )
    if not read:
        return
    forward, positions = bind_forward(by_function(node)), [node.inputs.index(x) for x in read]

    def sent(f: Tensor, s: Tensor | None, *values: Any) -> tuple[Tensor, ...]:
        return gradients(node, forward, values, positions, f if s is None else multiply(f, s))

    slots = [b.slot_of(flow.factor), *(v.index for v in node.inputs)]
    registers = b.step_with_results(sent, [flow.register], slots, [x.numel for x in read], is_linear=False)
    for x, register in zip(read, registers, strict=True):
        b.send(x, Flow(register))


def _read(node: Node) -> list[Value]:
    """The activations that the function read."""
    return [v for v in dict.fromkeys(leaves(node.args[1])) if isinstance(v, Value) and v in node.sources]


def _name(node: Node) -> str:
    call: Any = node.call
    return f"{call.name} in {module_text(node.path)}"


def by_function(node: Node) -> Node:
    """The node as the function itself computes it."""
    call: Any = node.call
    return replace(node, call=call.function)


def gradients(
    node: Node, forward: Callable[..., Tensor], inputs: Sequence[Any], positions: Sequence[int], cotangent: Tensor
) -> tuple[Tensor, ...]:
    """What the function's backward gives for each target in turn.

    Args:
        forward: the function, of the whole batch. inputs: tensors and numbers, as the model has them.
        positions: of the inputs that gradients are for. cotangent: ``(B, K, *y.shape[1:])``.

    Returns:
        for each of them ``(B, K, *x.shape[1:])``.

    Raises:
        UnsupportedOperationError: if the function or its backward fails.
    """
    with torch.inference_mode(False), torch.enable_grad():
        own = [x.clone() if isinstance(x, Tensor) else x for x in inputs]
        free = [own[i].detach().requires_grad_() for i in positions]
        for i, x in zip(positions, free, strict=True):
            own[i] = x.clone()  # The function may write into what it is given.
        results = [x.detach().new_zeros(x.shape[0], cotangent.shape[1], *x.shape[1:]) for x in free]
        try:
            y = forward(*own)
            _refuse_stand_ins(y)
            for k in range(cotangent.shape[1] if y.requires_grad else 0):
                given = cotangent[:, k].clone(memory_format=torch.contiguous_format)
                parts = torch.autograd.grad(y, free, given, retain_graph=True, allow_unused=True)
                _refuse_stand_ins(*parts)
                for result, part in zip(results, parts, strict=True):
                    if part is not None:
                        result[:, k] = part
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise UnsupportedOperationError(
                f"the gradient of {_name(node)} is what its backward gives, and that cannot be called here: "
                f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '').rstrip('.')}. A function "
                "must depend on its arguments alone, not on tensors from around it. To follow the operations of its "
                "forward in the place of the backward give it rules.Pass(), "
                "composite.with_entries((fastlrp.composites.kind('custom_backward'), rules.Pass()))"
            ) from error
    return tuple(results)


def _refuse_stand_ins(*tensors: Tensor | None) -> None:
    from torch._subclasses.fake_tensor import FakeTensor  # Not for those who never capture.

    if any(isinstance(t, FakeTensor) for t in tensors):
        raise TypeError("it reads a tensor of the trace, which has no data")


def through(walk: Walk, node: Node, rule: rules.Rule, R: Tensor) -> Share:
    """The textbook step."""
    if isinstance(rule, GRADIENTS):
        found = by_function(node)
        return Share({v: _gradient(walk, found, v, R) for v in _read(node)}, None)
    return textbook.all_to(node, node.args[:1], R)


def _gradient(walk: Walk, node: Node, x: Value, R: Tensor) -> Tensor:
    """Target by target, the derivative by one input alone."""
    with torch.enable_grad():
        point = walk.values[x].detach().clone().requires_grad_()
        y = walk.alone(node, x)(point.clone())
        parts = [torch.autograd.grad(y, point, r.clone(), retain_graph=True, allow_unused=True)[0] if y.requires_grad
                 else None for r in R.unbind(1)]  # fmt: skip
    return torch.stack([torch.zeros_like(point) if part is None else part for part in parts], 1).detach()


KIND = Kind(
    name="custom_backward",
    operations="custom_backward",
    lower=lower,
    textbook=through,
    preset=lambda sums: rules.Pass(),
    fallback=rules.Pass(),
    keeps_batch=False,
)
