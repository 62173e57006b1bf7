"""Operations without a kernel of their own: transposed derivatives by autograd, and rules that users write."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fastlrp import rules
from fastlrp.capture.bind import bind_forward
from fastlrp.capture.graph import Node, Value
from fastlrp.errors import UnsupportedOperationError
from fastlrp.plan.builder import Builder
from fastlrp.plan.steps import Factor, Flow
from fastlrp.plan.total import multiply


def vjp(forward: Callable[..., Tensor], inputs: tuple[Tensor, ...], cotangent: Tensor) -> tuple[Tensor, ...]:
    """``(dy/dx)^T s`` for a block of targets in one backward pass.

    Args:
        forward: acts on each sample alone.
        inputs: each ``(B, …)``, or ``(1, …)`` to stand for any batch.
        cotangent: ``(B, K, *y.shape[1:])``.

    Returns:
        for each input ``(B, K, *x.shape[1:])``.
    """
    batch, targets = cotangent.shape[:2]
    cotangent = cotangent.contiguous()  # PyTorch's derivative of an instance norm of one sample is wrong for others.
    # Inference mode records nothing, and its tensors cannot require grad: their copies made outside it can.
    with torch.inference_mode(False), torch.enable_grad():
        own = [x.clone() if x.is_inference() else x.detach() for x in inputs]
        wide = [x.unsqueeze(1).expand(batch, targets, *x.shape[1:]).flatten(0, 1).requires_grad_() for x in own]
        y = forward(*wide)
        again = cotangent.requires_grad  # Somebody asks for the transpose of this product.
        with _known():
            grads = torch.autograd.grad(y, wide, cotangent.reshape(y.shape), create_graph=again, allow_unused=True)
    return tuple(
        (torch.zeros_like(x) if g is None else g).unflatten(0, (batch, targets))
        for g, x in zip(grads, wide, strict=True)
    )


def vjp_each(forward: Callable[..., Tensor], inputs: tuple[Any, ...], position: int, cotangent: Tensor) -> Tensor:
    """``(dy/dx)^T s`` for one input of an operation that also reads sizes, integers or masks, target by target.

    Args:
        forward: of the whole batch. inputs: tensors and numbers, as the model has them.
        position: of the input that the derivative is for. cotangent: ``(B, K, *y.shape[1:])``.

    Returns:
        ``(B, K, *x.shape[1:])``.
    """
    with torch.inference_mode(False), torch.enable_grad():
        own = [_free(x) for x in inputs]
        point = own[position].requires_grad_()
        y = forward(*own)
        cotangent = cotangent.contiguous()  # See :func:`vjp`.
        if not y.requires_grad:
            return torch.zeros_like(point).unsqueeze(1).repeat(1, cotangent.shape[1], *[1] * (point.dim() - 1))
        parts = []
        for k in range(cotangent.shape[1]):
            again = cotangent.requires_grad  # Somebody asks for the transpose of this product.
            with _known():
                (part,) = torch.autograd.grad(
                    y,
                    point,
                    cotangent[:, k].clone(memory_format=torch.contiguous_format),
                    retain_graph=True,
                    create_graph=again,
                    allow_unused=True,
                )
            parts.append(torch.zeros_like(point) if part is None else part)
    if not parts:
        return point.detach().new_zeros(cotangent.shape[0], 0, *point.shape[1:])
    return torch.stack(parts, 1)


@contextmanager
def _known() -> Iterator[None]:
    """Turns PyTorch's error about a derivative that it does not have into one with a way out."""
    try:
        yield
    except (NotImplementedError, RuntimeError) as error:
        name = re.search(r"derivative for aten::(\w+) is not implemented", str(error))
        if name is None:
            raise
        raise UnsupportedOperationError(
            f"PyTorch has no derivative of {name[1]!r}, so that Gradient() is not defined for it. Give it a rule by an "
            f"entry of the composite, composite.with_entries((fastlrp.composites.operation({name[1]!r}), rule)): a "
            "fastlrp.rules.Custom rule, or Pass() for an element-wise operation"
        ) from error


def _free(x: Any) -> Any:
    """A tensor that autograd has not seen yet."""
    if not isinstance(x, Tensor):
        return x
    return x.clone() if x.is_inference() else x.detach()


def transpose_at(b: Builder, node: Node, flow: Flow) -> None:
    """The gradient of any operation at its inputs' values."""
    inputs = list(node.sources)
    if len(inputs) != len(node.inputs) or b.graph.batch is not None:
        transpose_beside(b, node, flow, b.slot_of(flow.factor))
        return
    transpose_from(b, bind_forward(node), inputs, [v.index for v in inputs], flow)


def transpose_from(
    b: Builder, forward: Callable[..., Tensor], inputs: Sequence[Value], slots: Sequence[int], flow: Flow
) -> None:
    """The gradient of ``forward`` at what the slots hold, sent to all ``inputs`` by one step."""

    def transposed(f: Tensor, s: Tensor | None, *values: Tensor) -> tuple[Tensor, ...]:
        return vjp(forward, values, f if s is None else multiply(f, s))

    read = [b.slot_of(flow.factor), *slots]
    registers = b.step_with_results(transposed, [flow.register], read, [x.numel for x in inputs])
    for x, register in zip(inputs, registers, strict=True):
        b.send(x, Flow(register))


def transpose_beside(
    b: Builder,
    node: Node,
    flow: Flow,
    factor: int | None,
    left: Factor | None = None,
    slots: Sequence[int] | None = None,
) -> None:
    """The gradient of an operation that also reads sizes, integers or masks, at what the slots hold, or its inputs."""
    forward = bind_forward(node)
    slots = [v.index for v in node.inputs] if slots is None else slots
    for x in node.sources:

        def transposed(f: Tensor, s: Tensor | None, *values: Any, position: int = node.inputs.index(x)) -> Tensor:
            return vjp_each(forward, values, position, f if s is None else multiply(f, s))

        b.send(x, Flow(b.step(transposed, [flow.register], [factor, *slots], x.numel), left or Factor()))


def ask(
    rule: rules.Custom,
    node: Node,
    forward: Callable[..., Tensor],
    inputs: tuple[Tensor, ...],
    output: Tensor,
    relevance: Tensor,
) -> Any:
    """What a user's rule returns. It gets copies of activations, which are the record's own, and may write into them.

    Raises:
        RuntimeError: if it writes into the relevance, which has as many times the size as there are targets.
    """
    if relevance.is_inference():  # Writes into such a tensor are not counted.
        return rule.propagate(forward, tuple(x.clone() for x in inputs), output.clone(), relevance.clone())
    before = relevance._version
    parts = rule.propagate(forward, tuple(x.clone() for x in inputs), output.clone(), relevance)
    if relevance._version != before:
        raise RuntimeError(
            f"{type(rule).__name__}.propagate wrote into the relevance that it got for {node}, which other layers may "
            "read too: let it return a new tensor (relevance * 2 in the place of relevance.mul_(2)), or write into "
            "relevance.clone()"
        )
    return parts


def _shown(parts: Any) -> str:
    return f"a tuple of {len(parts)}" if isinstance(parts, tuple) else type(parts).__name__


def lower_custom(b: Builder, node: Node, rule: rules.Custom, flow: Flow) -> None:
    """A user's own rule: gets R, returns R."""
    inputs = list(node.sources)
    if len(inputs) != len(node.inputs):
        raise UnsupportedOperationError(
            f"{node} also reads sizes, integers or masks, which a Custom rule is not given: use Gradient() for it"
        )
    forward = bind_forward(node)
    register = b.relevance_register(flow, node.output.numel)
    slots = [node.output.index, *(v.index for v in inputs)]

    def propagated(r: Tensor, y: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        parts = ask(rule, node, forward, values, y, r)
        if not isinstance(parts, tuple) or len(parts) != len(values):
            raise TypeError(
                f"{type(rule).__name__}.propagate must return a tuple with one entry for each of the "
                f"{len(values)} inputs of {node}, got {_shown(parts)}"
            )
        checked = []
        for position, (part, value) in enumerate(zip(parts, values, strict=True)):
            expected = (*r.shape[:2], *value.shape[1:])
            if part is not None and tuple(part.shape) != expected:
                raise ValueError(
                    f"{type(rule).__name__}.propagate returned relevance of shape {tuple(part.shape)} for input "
                    f"{position} of {node}, expected {expected}"
                )
            checked.append(r.new_zeros(expected) if part is None else part)
        return tuple(checked)

    numels = [x.numel for x in inputs]
    outs = b.step_with_results(propagated, [register], slots, numels, is_linear=False)
    for x, out in zip(inputs, outs, strict=True):
        b.send(x, Flow(out))
