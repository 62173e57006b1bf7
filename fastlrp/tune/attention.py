"""Calls of attention at the shapes of real models, and the tiles that are tried for its kernels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from fastlrp.aten.attention import attention_forward
from fastlrp.kernels.configs import Config
from fastlrp.tune.workloads import Workload

KERNELS = {
    "attention_forward": "attention_forward", "attention_query": "attention_relevance",
    "attention_key": "attention_relevance", "attention_value": "attention_value_relevance",
    "attention_up": "attention_up",
}  # fmt: skip
"""What tables have rows for, each with the operation that reads it. One call of an operation may run several."""

WITHOUT_TARGETS = "attention_forward"
UP = "attention_up"
"""Whose targets, groups here, are an axis of other arguments than the first."""
WITHOUT_LIBRARY = ("attention_key",)
"""The row of ``attention_query`` says for both whether the library's products are taken."""

_BY_KEY = ("attention_key", "attention_value")
_ROWS_OF_A_WARP = 16
_ITEMSIZE = {"half": 2, "tf32": 4, "ieee": 4}


@dataclass(frozen=True)
class Attention(Workload):
    """One call. ``inputs`` and ``outputs`` are the features of a query and a value, ``size`` counts queries and keys.

    Attributes:
        heads: of queries. sharing: heads that share one key head.
    """

    heads: int = 1
    sharing: int = 1
    causal: bool = False

    @property
    def largest(self) -> int:
        return self.batch * self.heads * max(self.size) * max(self.inputs, self.outputs)

    def __str__(self) -> str:
        S, T = self.size
        keys = f" sharing={self.sharing}" if self.sharing > 1 else ""
        causal = " causal" if self.causal else ""
        heads = f"{self.heads} heads of {self.inputs}{keys}, {S} queries, {T} keys{causal}"
        return f"{self.op} {heads}, B={self.batch}, K={self.targets}"

    def arguments(self, device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
        """Arguments of the operation, random, heads beside each other in memory as a projection leaves them."""
        generator = torch.Generator(device).manual_seed(0)

        def make(*shape: int) -> Tensor:
            *before, heads, rows, features = shape
            found = torch.randn(*before, rows, heads, features, generator=generator, device=device, dtype=dtype)
            return found.transpose(-2, -3)

        B, H, G, (S, T) = self.batch, self.heads, self.heads // self.sharing, self.size
        query, key, value = make(B, H, S, self.inputs), make(B, G, T, self.inputs), make(B, G, T, self.outputs)
        how = (None, self.causal, 1 / math.sqrt(self.inputs), 0.0)
        if self.op == "attention_forward":
            return query, key, value, *how
        output, log_sum = attention_forward(query, key, value, *how)
        if self.op == UP:
            sizes = (H, S, self.inputs), (G, T, self.inputs), (G, T, self.outputs)
            brought = [make(B, self.targets, *size) for size in sizes]
            return query, key, value, output, log_sum, *brought, *how, 0.25, 0.25, 0.5, 0.0
        flow = make(B, self.targets, H, S, self.outputs)
        if self.op == "attention_value_relevance":
            return flow, query, key, log_sum, *how
        return flow, query, key, value, output, log_sum, *how, 0.25, 0.25, 0.5, 0.0


def _models() -> Iterator[Attention]:
    """GPT-2, BERT-base and ViT-B/16; Llama 3 8B; Gemma 2 9B."""
    gpt2 = Attention("attention_relevance", 64, 64, (1024, 1024), heads=12, causal=True)
    yield gpt2
    yield replace(gpt2, size=(128, 128), causal=False)
    yield replace(gpt2, size=(197, 197), causal=False)
    yield replace(gpt2, inputs=128, outputs=128, size=(512, 512), heads=32, sharing=4)
    yield replace(gpt2, inputs=256, outputs=256, size=(512, 512), heads=16, sharing=2)


def standard(quick: bool = False, targets: tuple[int, ...] = (1, 32)) -> list[Workload]:
    """Attention of these models, each operation for each number of targets; ``quick``: one model of each width."""
    models, found = list(_models()), list[Workload]()
    if quick:
        models, targets = models[::2][:1] + models[3:], targets[-1:]
    for model, op in product(models, dict.fromkeys(KERNELS.values())):
        found += [replace(model, op=op, targets=k) for k in (targets if op != WITHOUT_TARGETS else (1,))]
    return found


def shared_bytes(kernel: str, config: Config, kind: str, features: int) -> int:
    """What the two operands that are streamed past a tile keep in shared memory; the kernel needs at least this."""
    streamed = config.block_m if kernel in _BY_KEY else config.block_n
    return 2 * streamed * features * _ITEMSIZE[kind] * max(1, config.num_stages - 1)


def candidates(kernel: str, kind: str, shared_limit: int, features: int, quick: bool = False) -> list[Config]:
    """Configurations to try, the library's products last.

    A tile has 16 rows for each warp, because a product that feeds another shares out its rows alone: more warps would
    compute the same twice. Without tensor cores small tiles are all that registers hold.
    """
    rows = [(32, 8), (16, 8)] if kind == "ieee" else [(_ROWS_OF_A_WARP * warps, warps) for warps in (4, 8)]
    streamed = (16, 32) if kind == "ieee" else (16, 32, 64, 128)
    targets = (1,) if kernel == WITHOUT_TARGETS else (1, 2, 4)
    stages = (2,) if quick else (1, 2, 3)
    found = []
    for (held, warps), passing, k, n in product(rows, streamed, targets, stages):
        tile = (passing, held) if kernel in _BY_KEY else (held, passing)
        found.append(Config(*tile, k, warps, n))
    found = [config for config in found if shared_bytes(kernel, config, kind, features) <= shared_limit]
    if kernel not in WITHOUT_LIBRARY and found:
        found.append(replace(found[0], route="library"))
    return found
