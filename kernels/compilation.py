"""What a launcher may compile, listed as data: the tests compile all of it ahead of time, without a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Compilation:
    """One kernel with the types and constants of one launch.

    Attributes:
        name: what a test calls it. kernel: the ``triton.jit`` function.
        signature: type of each argument that is no constant: ``"*fp32"``, ``"i32"``, ``"i64"``, ``"fp32"``.
        constexprs: value of each constant. divisible_by_16: arguments that are multiples of 16 (aligned pointers).
        tensor_cores: whether its products must be the tensor cores' (``mma`` or ``wgmma`` in the PTX).
    """

    name: str
    kernel: Any
    signature: dict[str, str]
    constexprs: dict[str, Any]
    divisible_by_16: tuple[str, ...]
    num_warps: int
    num_stages: int
    tensor_cores: bool


POINTERS = {
    torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.int64: "*i64", torch.int32: "*i32",
    torch.uint8: "*u8",
}  # fmt: skip
"""Triton's name of a pointer to each dtype."""
