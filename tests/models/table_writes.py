"""Bodies of the table that write into tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.models.cases import Body


def _slice(m: Any, x: Tensor) -> Tensor:
    y = x * 2
    y[:, 1:3] = x[:, 4:6]
    return y


def _views_of_views(m: Any, x: Tensor) -> Tensor:
    y = x * 2
    a, b = y.view(-1, 2, 4).transpose(1, 2), y.unfold(1, 2, 2)
    a[:, 1:, 0] *= 3
    b[:, 0] += a[:, :2, 1]
    a[:, 0].fill_(0.5)
    return torch.cat([y, a.flatten(1), b.flatten(1)], 1)


def _shifted(m: Any, x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[:, 1:] = x[:, :-1]
    return x * m.p + y * (1 - m.p)


def _filled(m: Any, x: Tensor) -> Tensor:
    y = x.new_empty(len(x), 2, 8)
    y[:, 0] = x * 2
    y[:, 1] = x.relu()
    return y


def _windows(m: Any, x: Tensor) -> Tensor:
    mask = torch.zeros(2, 4)
    for number, part in enumerate((slice(0, 2), slice(2, 4))):
        mask[:, part] = number
    return x.view(-1, 2, 4) * mask


def _chunks(m: Any, x: Tensor) -> Tensor:
    y = x * 1
    a, b = y.chunk(2, 1)
    a.add_(b)
    b.mul_(a)
    return y


def _before(m: Any, x: Tensor) -> Tensor:
    y = x * 1
    z = y[:, :4] + 1
    y[:, :4].zero_()
    return torch.cat([y, z], 1)


def _chosen(m: Any, x: Tensor) -> Tensor:
    """``|=`` and its kin write in place, too."""
    chosen = x > 0
    chosen |= x < -1
    chosen &= x < 2
    chosen ^= x > 1
    return torch.where(chosen, x, m.p)


IN_PLACE: dict[str, Body] = {
    "slice": _slice,
    "views_of_views": _views_of_views,
    "shifted": _shifted,
    "filled": _filled,
    "windows": _windows,
    "chunks": _chunks,
    "before": _before,
    "chosen": _chosen,
    "fill": lambda m, x: _changed(x, lambda y: y[:, :2].fill_(3)),
    "zero": lambda m, x: _changed(x, lambda y: y[:, :2].zero_()),
    "add": lambda m, x: _changed(x, lambda y: y[:, 2:].add_(x[:, 2:])),
    "copy": lambda m, x: _changed(x, lambda y: y[:, 0].copy_(y[:, 1])),
    "copy_broadcast": lambda m, x: _changed(x, lambda y: y[:, :3].copy_(x[:, :1])),
    "copy_constant": lambda m, x: _changed(x, lambda y: y.copy_(m.p)),
    "index_put": lambda m, x: _changed(
        x, lambda y: torch.ops.aten.index_put_(y, [None, torch.tensor([1, 4])], x[:, :2])
    ),
    "list_index": lambda m, x: _changed(x, lambda y: y.__setitem__((slice(None), [0, 3]), y[:, [1, 2]])),
    "mask_index": lambda m, x: _changed(x, lambda y: y.__setitem__(x < 0, 0.0)),
    "constant_mask_index": lambda m, x: _changed(x, lambda y: y.__setitem__((slice(None), m.mask), 1.0)),
    "masked_fill": lambda m, x: _changed(x, lambda y: y.masked_fill_(x > 1, 0.0)),
    "scatter": lambda m, x: _changed(x, lambda y: y.scatter_(1, x.argsort(1)[:, :2], 0.0)),
    "own_entry": lambda m, x: _changed(x, lambda y: y.__setitem__((torch.arange(len(x)), x.argmax(1)), 0.0)),
    "first_sample": lambda m, x: _changed(x, lambda y: y.__setitem__(0, 0.0)),
    "step": lambda m, x: _changed(x, lambda y: y[:, ::2].mul_(2)),
    "transposed": lambda m, x: _changed(x, lambda y: y.view(-1, 2, 4).mT[:, 1].sub_(1)),
    "diagonal": lambda m, x: _changed(x, lambda y: y.view(-1, 2, 4).diagonal(dim1=1, dim2=2).mul_(3)),
    "relu_of_a_slice": lambda m, x: _changed(x, lambda y: F.relu_(y[:, 3:])),
    "counter": lambda m, x: (m.count.add_(1), x * 2)[1],
    "read_counter": lambda m, x: x * m.count.add_(1),
    "weight": lambda m, x: (m.p.data[:2].zero_(), x * m.p)[1],
    "squeezed": lambda m, x: _changed(x, lambda y: y.unsqueeze(1).squeeze(1)[:, 1].neg_()),
    "reshape_of_a_view": lambda m, x: _changed(x, lambda y: y.reshape(-1, 2, 4)[:, 0].exp_()),
    "dtype": lambda m, x: _changed(x, lambda y: y[:, :3].copy_(x[:, :3] > 0)),
}


def _changed(x: Tensor, change: Callable[[Tensor], Any]) -> Tensor:
    y = x * 1.5
    change(y)
    return y
