"""Random models: graphs of small operations with several readers of a value, values read twice, modules called twice.

``RandomModel(seed)`` is a model with an example input. Each operation is a module ``ops.<i>``, whose operands are
random earlier values of shapes that it takes.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MOST = 40
"""Entries of the largest value of one sample."""


class Op(nn.Module):
    """One operation on one or two values. ``parts``: its parameters and modules."""

    def __init__(self, name: str, function: Callable[..., Tensor], parts: dict[str, Any]) -> None:
        super().__init__()
        self.name, self.function = name, function
        for key, part in parts.items():
            if isinstance(part, Tensor):
                self.register_parameter(key, nn.Parameter(part, requires_grad=part.is_floating_point()))
            else:
                setattr(self, key, part)

    def forward(self, *operands: Tensor) -> Tensor:
        return self.function(self, *operands)

    def extra_repr(self) -> str:
        return self.name


Made = tuple[Callable[..., Tensor], dict[str, Any]] | None
"""The function and its parts; None if the operand's sizes do not fit."""


def _axis(r: random.Random, sizes: tuple[int, ...]) -> int:
    return r.randrange(1, len(sizes) + 1)


def _plain(function: Callable[..., Tensor]) -> Callable[..., Made]:
    return lambda r, *sizes: (lambda self, *operands: function(*operands), {})


def _slice(r: random.Random, sizes: tuple[int, ...]) -> Made:
    axis = _axis(r, sizes)
    size = sizes[axis - 1]
    if size < 2:
        return None
    start = r.randrange(0, size - 1)
    length = r.randrange(1, size - start + 1)
    return lambda self, x: x.narrow(axis, start, length), {}


def _strided(r: random.Random, sizes: tuple[int, ...]) -> Made:
    if sizes[-1] < 3:
        return None
    return lambda self, x: x[..., ::2], {}


def _select(r: random.Random, sizes: tuple[int, ...]) -> Made:
    if len(sizes) < 2:
        return None
    axis = _axis(r, sizes)
    at = r.randrange(sizes[axis - 1])
    return lambda self, x: x.select(axis, at), {}


def _pad(r: random.Random, sizes: tuple[int, ...]) -> Made:
    before, after, value = r.randrange(2), r.randrange(1, 3), r.choice([0.0, 0.0, 1.5])
    return lambda self, x: F.pad(x, (before, after), value=value), {}


def _flip(r: random.Random, sizes: tuple[int, ...]) -> Made:
    axis = _axis(r, sizes)
    return lambda self, x: x.flip(axis), {}


def _roll(r: random.Random, sizes: tuple[int, ...]) -> Made:
    axis = _axis(r, sizes)
    return lambda self, x: x.roll(1, axis), {}


def _transpose(r: random.Random, sizes: tuple[int, ...]) -> Made:
    if len(sizes) < 2:
        return None
    a, b = r.sample(range(1, len(sizes) + 1), 2)
    return lambda self, x: x.transpose(a, b), {}


def _unflatten(r: random.Random, sizes: tuple[int, ...]) -> Made:
    if sizes[-1] % 2 or len(sizes) > 2:
        return None
    return lambda self, x: x.unflatten(-1, (2, -1)), {}


def _flatten(r: random.Random, sizes: tuple[int, ...]) -> Made:
    return (lambda self, x: x.flatten(1), {}) if len(sizes) > 1 else None


def _expand(r: random.Random, sizes: tuple[int, ...]) -> Made:
    return lambda self, x: x.unsqueeze(1).expand(-1, 2, *x.shape[1:]), {}


def _mean(r: random.Random, sizes: tuple[int, ...]) -> Made:
    if len(sizes) < 2 and r.random() < 0.7:
        return None
    axis, keep, total = _axis(r, sizes), len(sizes) < 2 or r.random() < 0.5, r.random() < 0.3
    return lambda self, x: (torch.sum if total else torch.mean)(x, axis, keepdim=keep), {}


def _amax(r: random.Random, sizes: tuple[int, ...]) -> Made:
    axis = _axis(r, sizes)
    return lambda self, x: x.amax(axis, keepdim=True), {}


def _linear(r: random.Random, sizes: tuple[int, ...]) -> Made:
    out = r.choice([sizes[-1], r.randrange(1, 6)])
    return lambda self, x: self.layer(x), {"layer": nn.Linear(sizes[-1], out, bias=r.random() < 0.7)}


def _conv(r: random.Random, sizes: tuple[int, ...]) -> Made:
    if len(sizes) != 2 or sizes[1] < 2:
        return None
    out, size = r.choice([sizes[0], r.randrange(1, 5)]), r.randrange(1, 3)
    bias, padding, stride = r.random() < 0.7, r.randrange(2), r.choice([1, 1, 2])
    layer = nn.Conv1d(sizes[0], out, size, stride=stride, padding=padding, bias=bias)
    return lambda self, x: self.layer(x), {"layer": layer}


def _max_pool(r: random.Random, sizes: tuple[int, ...]) -> Made:
    if len(sizes) != 2 or sizes[1] < 3:
        return None
    stride = r.randrange(1, 3)
    return lambda self, x: F.max_pool1d(x, 2, stride), {}


def _avg_pool(r: random.Random, sizes: tuple[int, ...]) -> Made:
    if len(sizes) != 2 or sizes[1] < 3:
        return None
    stride, padding = r.randrange(1, 3), r.randrange(2)
    return lambda self, x: F.avg_pool1d(x, 2, stride, padding), {}


def _layer_norm(r: random.Random, sizes: tuple[int, ...]) -> Made:
    if sizes[-1] < 2:
        return None
    norm = nn.LayerNorm(sizes[-1])
    nn.init.normal_(norm.weight, 1, 0.3)
    nn.init.normal_(norm.bias, 0, 0.3)
    return lambda self, x: self.norm(x), {"norm": norm}


def _rms_norm(r: random.Random, sizes: tuple[int, ...]) -> Made:
    return (lambda self, x: self.norm(x), {"norm": nn.RMSNorm(sizes[-1])}) if sizes[-1] > 1 else None


def _scaled(r: random.Random, sizes: tuple[int, ...]) -> Made:
    if r.random() < 0.5:
        number = r.choice([0.5, -2.0, 3.0])
        return (lambda self, x: x * number) if r.random() < 0.5 else (lambda self, x: x / number), {}
    gain = torch.randn(sizes[-1])
    return lambda self, x: x * self.gain, {"gain": gain}


def _plus(r: random.Random, sizes: tuple[int, ...]) -> Made:
    form = r.randrange(4)
    shift = torch.randn(sizes[-1] if r.random() < 0.5 else sizes)
    if form == 0:
        return lambda self, x: x + self.shift, {"shift": shift}
    if form == 1:
        return lambda self, x: self.shift - x, {"shift": shift}
    if form == 2:
        return lambda self, x: x + 0.7, {}
    return lambda self, x: 1 - x, {}


def _twice(r: random.Random, sizes: tuple[int, ...]) -> Made:
    layer: nn.Module = nn.Linear(sizes[-1], sizes[-1], bias=r.random() < 0.7)
    if r.random() < 0.5:
        layer = nn.Sequential(layer, r.choice([nn.ReLU(), nn.GELU()]))
    form = r.randrange(2)
    if form == 0:
        return lambda self, x: self.layer(self.layer(x)), {"layer": layer}
    return lambda self, x: self.layer(x) + self.layer(x.flip(1)), {"layer": layer}


def _residual(r: random.Random, sizes: tuple[int, ...]) -> Made:
    layer = nn.Linear(sizes[-1], sizes[-1], bias=r.random() < 0.7)
    return lambda self, x: x + self.layer(x).relu(), {"layer": layer}


def _chunks(r: random.Random, sizes: tuple[int, ...]) -> Made:
    if sizes[-1] < 2 or sizes[-1] % 2:
        return None

    def crossed(self: Op, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return torch.cat((b, a.relu()), -1)

    return crossed, {}


def _index(r: random.Random, sizes: tuple[int, ...]) -> Made:
    index = torch.tensor([r.randrange(sizes[-1]) for _ in range(3)])
    return lambda self, x: x[..., self.index], {"index": index}


def _attention(r: random.Random, sizes: tuple[int, ...]) -> Made:
    if len(sizes) != 2 or sizes[-1] < 2:
        return None
    width, causal, eager = sizes[-1], r.random() < 0.5, r.random() < 0.4
    parts = {name: nn.Linear(width, 2) for name in "qkv"}

    def attend(self: Op, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unsqueeze(1) for layer in (self.q, self.k, self.v))
        if eager:
            return (torch.softmax(q @ k.transpose(-1, -2) / 2**0.5, -1) @ v).squeeze(1)
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal).squeeze(1)

    return attend, parts


def _multi_head(r: random.Random, sizes: tuple[int, ...]) -> Made:
    if len(sizes) != 2 or sizes[-1] % 2:
        return None
    layer = nn.MultiheadAttention(sizes[-1], 2, batch_first=True)
    return lambda self, x: self.layer(x, x, x, need_weights=False)[0], {"layer": layer}


def _gate(r: random.Random, a: tuple[int, ...], b: tuple[int, ...]) -> Made:
    return lambda self, x, y: x * torch.sigmoid(y), {}


def _sub(r: random.Random, a: tuple[int, ...], b: tuple[int, ...]) -> Made:
    # Not ``x - x``: of zeros nothing but rounding is left, which no comparison knows the size of.
    return lambda self, x, y: x - (0.5 * y if x is y else y), {}


def _cat(r: random.Random, a: tuple[int, ...], b: tuple[int, ...]) -> Made:
    axis = _axis(r, a)
    return lambda self, x, y: torch.cat((x, y), axis), {}


def _cat_own(r: random.Random, sizes: tuple[int, ...]) -> Made:
    axis = _axis(r, sizes)
    return r.choice([
        lambda self, x: torch.cat((x, x), axis),
        lambda self, x: torch.cat((x, x + x), axis),
        lambda self, x: torch.stack((x, x.relu()), axis),
        lambda self, x: torch.cat((torch.ones_like(x), x), axis),
    ]), {}  # fmt: skip


def _broadcast_add(r: random.Random, a: tuple[int, ...], b: tuple[int, ...]) -> Made:
    return lambda self, x, y: x + y.mean(-1, keepdim=True), {}


def _matmul(r: random.Random, a: tuple[int, ...], b: tuple[int, ...]) -> Made:
    return (lambda self, x, y: x @ y.transpose(-1, -2), {}) if len(a) == 2 else None


def _batch_norm(r: random.Random, sizes: tuple[int, ...]) -> Made:
    if len(sizes) != 2 or sizes[1] < 2:
        return None
    out = r.randrange(1, 4)
    norm = nn.BatchNorm1d(out)
    for t in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(t, 0.5, 0.5)
    conv = nn.Conv1d(sizes[0], out, 1, bias=r.random() < 0.5)
    return lambda self, x: self.norm(self.conv(x)), {"conv": conv, "norm": norm}


def _where(r: random.Random, a: tuple[int, ...], b: tuple[int, ...]) -> Made:
    mask = torch.rand(a) < 0.5
    return r.choice([
        lambda self, x, y: torch.where(self.mask, x, y),
        lambda self, x, y: torch.where(x > 0, x, y),
        lambda self, x, y: torch.maximum(x, y),
    ]), {"mask": mask}  # fmt: skip


def _einsum(r: random.Random, a: tuple[int, ...], b: tuple[int, ...]) -> Made:
    return (lambda self, x, y: torch.einsum("bij,bkj->bik", x, y), {}) if len(a) == 2 else None


def _masked(r: random.Random, sizes: tuple[int, ...]) -> Made:
    mask = torch.rand(sizes) < 0.3
    mask[..., 0] = False  # A softmax of nothing is NaN.
    return r.choice([
        lambda self, x: x.masked_fill(self.mask, 0.0),
        lambda self, x: x.masked_fill(self.mask, float("-inf")).softmax(-1),
        lambda self, x: x * self.mask,
    ]), {"mask": mask}  # fmt: skip


def _smooth(r: random.Random, sizes: tuple[int, ...]) -> Made:
    return r.choice([
        lambda self, x: F.normalize(x, dim=-1), lambda self, x: x.cumsum(-1), lambda self, x: x.clamp(min=0.1),
        lambda self, x: x.abs(), lambda self, x: F.pad(x, (1, 1), value=float("-inf")).amax(-1, keepdim=True),
        lambda self, x: F.elu(x), lambda self, x: F.softplus(x), lambda self, x: x.exp(),
    ]), {}  # fmt: skip


def _activation(r: random.Random, sizes: tuple[int, ...]) -> Made:
    function = r.choice([torch.relu, torch.relu, F.gelu, torch.tanh, F.silu, F.leaky_relu])
    return lambda self, x: function(x), {}


ONE: dict[str, tuple[Callable[..., Made], float]] = {
    "activation": (_activation, 3),
    "identity": (lambda r, s: (lambda self, x: self.same(x), {"same": r.choice([nn.Identity(), nn.Dropout(0.3)])}), 1),
    "linear": (_linear, 3), "conv": (_conv, 2), "max_pool": (_max_pool, 1), "avg_pool": (_avg_pool, 1),
    "layer_norm": (_layer_norm, 1), "rms_norm": (_rms_norm, 0.5), "softmax": (_plain(lambda x: x.softmax(-1)), 0.7),
    "mean": (_mean, 2), "amax": (_amax, 0.5), "scaled": (_scaled, 2), "plus": (_plus, 2), "twice": (_twice, 1.5),
    "residual": (_residual, 1), "doubled": (_plain(lambda x: x + x), 1), "squared": (_plain(lambda x: x * x), 0.7),
    "negative": (_plain(lambda x: -x), 0.5), "self_less": (_plain(lambda x: x - 0.5 * x), 0.5),
    "slice": (_slice, 1), "strided": (_strided, 0.5), "select": (_select, 0.5), "pad": (_pad, 1), "flip": (_flip, 1),
    "roll": (_roll, 0.5), "transpose": (_transpose, 1), "unflatten": (_unflatten, 0.5), "flatten": (_flatten, 0.7),
    "expand": (_expand, 0.5), "chunks": (_chunks, 0.7), "index": (_index, 0.5), "cat_own": (_cat_own, 1.5),
    "attention": (_attention, 1), "multi_head": (_multi_head, 0.5), "batch_norm": (_batch_norm, 1),
    "masked": (_masked, 0.7), "smooth": (_smooth, 1.5),
}  # fmt: skip

TWO: dict[str, tuple[Callable[..., Made], float]] = {
    "add": (_plain(torch.add), 3), "sub": (_sub, 2), "mul": (_plain(torch.mul), 1.5), "gate": (_gate, 1),
    "cat": (_cat, 2), "broadcast_add": (_broadcast_add, 1), "matmul": (_matmul, 1),
    "where": (_where, 0.7), "einsum": (_einsum, 0.5),
}  # fmt: skip


class RandomModel(nn.Module):
    """``length`` operations, each on earlier values; the last one, and what nobody reads, is the output, flattened.

    Attributes:
        x: an example input of three samples, a tuple if the model has two; ids where it begins with an embedding.
    """

    def __init__(self, seed: int, length: int | None = None, head: bool | None = None) -> None:
        super().__init__()
        r = random.Random(seed)
        torch.manual_seed(seed)
        self.ops, self.wires = nn.ModuleList(), list[tuple[int, ...]]()
        length = r.randrange(2, 8) if length is None else length
        self.table = nn.Embedding(7, r.choice([2, 4])) if r.random() < 0.15 else None
        if self.table is not None:
            self.x: tuple[Tensor, ...] = (torch.randint(0, 7, (3, 4)),)
            given = [(4, self.table.embedding_dim)]
        else:
            sizes = r.choice([(5,), (4,), (3, 4), (4, 2), (2, 5)])
            given = [sizes] * r.choice([1, 1, 2])
            self.x = tuple(torch.randn(3, *sizes, dtype=torch.float64) for _ in given)
        values = [torch.randn(2, *sizes) for sizes in given]
        while len(self.ops) < length:
            self._append(r, values)
        read = {i for wire in self.wires for i in wire}
        left = [i for i in range(len(values)) if i not in read]
        # Mostly the last value alone, so that others have entries or wholes that nobody reads.
        self.outputs = left if r.random() < 0.6 else left[-1:]
        width = sum(values[i].flatten(1).shape[1] for i in self.outputs)
        head = r.random() < 0.5 if head is None else head
        self.head = nn.Linear(width, 3) if head else None
        self.double().eval()

    def _append(self, r: random.Random, values: list[Tensor]) -> None:
        pairs = r.random() < 0.35
        table = TWO if pairs else ONE
        make = r.choices(list(table), [weight for _, weight in table.values()])[0]
        recent = values[-3:] if r.random() < 0.7 else values
        first = r.choice(recent)
        operands = [first]
        if pairs:
            operands.append(r.choice([v for v in values if v.shape == first.shape]))
        made = table[make][0](r, *(tuple(v.shape[1:]) for v in operands))
        if made is None:
            return
        op = Op(make, *made)
        with torch.no_grad():
            result = op(*operands)
        if not 0 < result[0].numel() <= MOST or result.dim() > 4:
            return
        self.ops.append(op)
        self.wires.append(tuple(next(i for i, v in enumerate(values) if v is operand) for operand in operands))
        values.append(result)

    def forward(self, *x: Tensor) -> Tensor:
        values = [self.table(x[0])] if self.table is not None else list(x)
        for op, wire in zip(self.ops, self.wires, strict=True):
            values.append(op(*(values[i] for i in wire)))
        whole = torch.cat([values[i].flatten(1) for i in self.outputs], 1)
        return whole if self.head is None else self.head(whole)

    def up_to(self, number: int) -> RandomModel:
        """The same model that ends with one operation and no head."""
        other = copy.copy(self)
        other._modules = dict(self._modules)
        other.outputs, other.head = [number + len(self.x if self.table is None else (1,))], None
        other.ops, other.wires = self.ops[: number + 1], self.wires[: number + 1]
        return other

    def text(self) -> str:
        """One line about each operation."""
        lines = [f"ops.{i} = {op.name}{wire}" for i, (op, wire) in enumerate(zip(self.ops, self.wires, strict=True))]
        return "; ".join([*lines, f"outputs {self.outputs}, head {self.head is not None}"])
