"""Random models: graphs of small operations with several readers of a value, values read twice, modules called twice.

``RandomModel(seed)`` is a model with an example input. Each operation is a module ``ops.<i>``, whose operands are
random earlier values of shapes that it takes.
"""

from __future__ import annotations

import copy
import random

import torch
from torch import Tensor, nn

from tests.directions.random_layers import LAYERS
from tests.directions.random_ops import ONE, TWO, Op

MOST = 40
"""Entries of the largest value of one sample."""


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
        table = TWO if pairs else ONE | LAYERS
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
        if not 0 < result[0].numel() <= MOST or not 2 <= result.dim() <= 4:
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
