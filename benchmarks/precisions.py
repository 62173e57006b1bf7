"""Precisions that are measured: a dtype, and whether float32 products may use TF32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Precision:
    """``unit``: half the distance from one to the next number, of what products read.

    ``tf32``, ``bf16``: PyTorch's switches for float32 products, on a GPU and on a CPU.
    """

    dtype: torch.dtype
    tf32: bool
    unit: float
    bf16: bool = False


PRECISIONS = {
    "float32": Precision(torch.float32, False, 2.0**-24),
    "tf32": Precision(torch.float32, True, 2.0**-11),
    "bf16": Precision(torch.float32, False, 2.0**-8, True),
    "bfloat16": Precision(torch.bfloat16, False, 2.0**-8),
    "float16": Precision(torch.float16, False, 2.0**-11),
}


@contextmanager
def using(name: str) -> Iterator[Precision]:
    """PyTorch's switches for float32 products, convolutions' and matrix products' alike; as they were afterwards."""
    found = PRECISIONS[name]
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = found.tf32
    switches: list[Any] = [torch.backends.mkldnn.conv, torch.backends.mkldnn.matmul]
    before = [switch.fp32_precision for switch in switches]
    for switch in switches:
        switch.fp32_precision = "bf16" if found.bf16 else "none"
    try:
        yield found
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = convolutions, products
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value
