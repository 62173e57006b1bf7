"""Copies of ids on their way from the model's input to an embedding: relevance goes back to where each id came from.

Ids have no derivative, so that an operation is run on the entries' own numbers, once per forward pass: where it copies
them to may depend on the sample (a mask for padding).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fastlrp.capture.bind import bind_forward
from fastlrp.capture.graph import Node, Value, substitute, with_tensors
from fastlrp.capture.wording import shape_text
from fastlrp.errors import UnsupportedOperationError
from fastlrp.plan.builder import Builder
from fastlrp.plan.steps import Factor, Flow

_NUMBERED = (torch.int32, torch.int64)
_CHANGE = 1 << 30


def lower(b: Builder, node: Node, flow: Flow) -> None:
    """Send each source the relevance of the ids that were copied from it."""
    y = node.output
    for value in (y, *node.sources):
        if not value.has_batch_first:
            raise UnsupportedOperationError(
                f"{node}: ids of shape {shape_text(value.shape)} do not keep the batch as axis 0, so relevance of one "
                "sample cannot be told from that of the others"
            )
    assert flow.factor == Factor(), "relevance of ids is never a multiple of ids"
    forward = bind_forward(node)
    for x in node.sources:
        origin = b.cache(_origins(node, forward, x), [v.index for v in node.inputs], y.numel, itemsize=8)
        sizes = x.sizes

        def to_origin(R: Tensor, origin: Tensor, sizes: tuple[int, ...] = sizes, n: int = x.numel) -> Tensor:
            found = R.new_zeros(*R.shape[:2], n + 1)  # The last entry takes what came from elsewhere.
            found.scatter_add_(2, origin.unsqueeze(1).expand(-1, R.shape[1], -1), R.flatten(2))
            return found[:, :, :n].unflatten(2, sizes)

        def from_origin(t: Tensor, origin: Tensor) -> Tensor:
            padded = torch.nn.functional.pad(t.flatten(2), (0, 1))
            return padded.gather(2, origin.unsqueeze(1).expand(-1, t.shape[1], -1)).unflatten(2, y.sizes)

        b.send(x, Flow(b.step(to_origin, [flow.register], [origin], x.numel, up=from_origin)))


def _origins(node: Node, forward: Callable[..., Any], x: Value) -> Callable[..., Tensor]:
    """What gives each entry of the result the number of the entry of ``x`` that it is, ``x.numel`` where of none.

    Run on the numbers and on the negative numbers: a copy changes its sign with them, anything else does not.
    """
    position, n = node.inputs.index(x), x.numel

    def origins(*values: Any) -> Tensor:
        ids = values[position]
        dtype = ids.dtype if ids.dtype in _NUMBERED else torch.int64
        numbers = torch.arange(1, ids.numel() + 1, dtype=dtype, device=ids.device).view(ids.shape)
        found, negative = (
            forward(*values[:position], t, *values[position + 1 :]).flatten(1).long() for t in (numbers, -numbers)
        )
        entry = found - 1 - torch.arange(found.shape[0], device=ids.device).unsqueeze(1) * n
        copied = (found == -negative) & (entry >= 0) & (entry < n)
        return torch.where(copied, entry, n)

    return origins


def through(values: Mapping[Value, Any], node: Node, R: Tensor) -> dict[Value, Tensor]:
    """The definition: an id's relevance is that of the entries that change with it."""
    args, kwargs = with_tensors(node.args), with_tensors(node.kwargs)
    before = values[node.output]
    shares: dict[Value, Tensor] = {}
    for x in node.sources:
        parts = R.new_zeros(*R.shape[:2], x.numel)
        for entry in range(x.numel):
            changed = values[x].to(torch.int64 if values[x].dtype not in _NUMBERED else values[x].dtype).clone()
            changed.view(changed.shape[0], -1)[:, entry] += _CHANGE
            table = {v: values[v] for v in node.inputs} | {x: changed}
            after = node.call(*substitute(args, table), **substitute(kwargs, table))
            parts[:, :, entry] = (R * (after != before).unsqueeze(1)).flatten(2).sum(2)
        shares[x] = parts.unflatten(2, x.sizes)
    return shares
