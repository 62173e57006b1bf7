"""Precisions that are measured: a dtype, and whether float32 products may use TF32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Precision:
    """``unit``: half the distance from one to the next number, of what products read."""

    dtype: torch.dtype
    tf32: bool
    unit: float


PRECISIONS = {
    "float32": Precision(torch.float32, False, 2.0**-24),
    "tf32": Precision(torch.float32, True, 2.0**-11),
    "bfloat16": Precision(torch.bfloat16, False, 2.0**-8),
    "float16": Precision(torch.float16, False, 2.0**-11),
}


@contextmanager
def using(name: str) -> Iterator[Precision]:
    """PyTorch's switches for float32 products, convolutions' and matrix products' alike; as they were afterwards."""
    found = PRECISIONS[name]
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = found.tf32
    try:
        yield found
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = convolutions, products


if __name__ == "__main__":
    from benchmarks.reduced import main

    main()
