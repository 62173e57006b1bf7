"""The kernels of a linear layer without a product: around a library's, and the rows that one-hot targets select.

Each program has a tile of whole rows, or of a part of one row where rows are long. Offsets are 64-bit.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastlrp.kernels.launch import Launch
from fastlrp.kernels.linear.product import Product, of_sign, positive, scaled, sign_of, strides

_TILES = ((64, 16), (256, 4), (1024, 1))
"""Width and height of a tile: the narrowest that takes a row at once, or the widest."""

_WARPS = 4


@triton.jit
def _tile(columns, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Rows and columns of a program's tile; neighbouring programs are beside each other in a row."""
    tiles = tl.cdiv(columns, BLOCK_N)
    row = (tl.program_id(0) // tiles).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = (tl.program_id(0) % tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    return row, column.to(tl.int64)


@triton.jit(do_not_specialize=["rows", "K", "L"])
def scale_rows_kernel(
    flow,  # F, (B, K, L, O)
    u,  # (B, L, O) or None
    v,  # (B, L, O) or None
    out_u,  # (B K L, O) or None
    out_v,  # (B K L, O) or None
    rows,
    K,
    L,
    O,
    flow_b,
    flow_k,
    flow_l,
    flow_o,
    u_b,
    u_l,
    u_o,
    v_b,
    v_l,
    v_o,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """``u F`` and ``v F``: what goes into a library's product."""
    row, o = _tile(O, BLOCK_M, BLOCK_N)
    b = row // L // K
    k = row // L % K
    l = row % L
    inside = (row < rows)[:, None] & (o < O)[None, :]
    f = tl.load(flow + (b * flow_b + k * flow_k + l * flow_l)[:, None] + o[None, :] * flow_o, mask=inside, other=0.0)
    place = row[:, None] * O + o[None, :]
    if u is not None:
        coefficient = tl.load(u + (b * u_b + l * u_l)[:, None] + o[None, :] * u_o, mask=inside, other=0.0)
        tl.store(out_u + place, scaled(f, coefficient), mask=inside)
    if v is not None:
        coefficient = tl.load(v + (b * v_b + l * v_l)[:, None] + o[None, :] * v_o, mask=inside, other=0.0)
        tl.store(out_v + place, scaled(f, coefficient), mask=inside)


@triton.jit(do_not_specialize=["rows", "K", "L"])
def finish_rows_kernel(
    total,  # (B K L, I), where the result goes
    above,  # product with W+, (B K L, I) or None
    below,  # product with W-, (B K L, I) or None
    x,  # (B, L, I)
    rows,
    K,
    L,
    I,
    x_b,
    x_l,
    x_i,
    ADD: tl.constexpr,
    MULTIPLY: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The sign's choice between a library's products, added to ``total`` or instead of it, times the input or not."""
    row, i = _tile(I, BLOCK_M, BLOCK_N)
    inside = (row < rows)[:, None] & (i < I)[None, :]
    place = row[:, None] * I + i[None, :]
    x_start = row // L // K * x_b + row % L * x_l
    sign = tl.load(x + x_start[:, None] + i[None, :] * x_i, mask=inside, other=0.0).to(tl.float32)
    result = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    if ADD:
        result = tl.load(total + place, mask=inside, other=0.0).to(tl.float32)
    if above is not None:
        result += tl.load(above + place, mask=inside & (sign > 0), other=0.0).to(tl.float32)
        result += tl.load(below + place, mask=inside & (sign < 0), other=0.0).to(tl.float32)
    if MULTIPLY:
        result *= sign
    tl.store(total + place, result.to(total.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows", "K", "O"])
def one_hot_kernel(
    value,  # (B, K)
    index,  # (B, K), int64
    weight,  # W, (O, I)
    u,  # (B, O) or None
    v,  # (B, O) or None
    x,  # (B, I) or None
    out,  # (B, K, I)
    rows,
    K,
    O,
    I,
    value_b,
    value_k,
    index_b,
    index_k,
    weight_o,
    weight_i,
    u_b,
    u_o,
    v_b,
    v_o,
    x_b,
    x_i,
    SIGNED: tl.constexpr,
    MULTIPLY: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """``out[b, k] = value[b, k] (u[b, j] W[j] + v[b, j] W+[j])`` with ``j = index[b, k]``; NaN where W has no row j."""
    row, i = _tile(I, BLOCK_M, BLOCK_N)
    b = row // K
    k = row % K
    is_row = row < rows
    inside = is_row[:, None] & (i < I)[None, :]
    j = tl.load(index + b * index_b + k * index_k, mask=is_row, other=0)
    known = is_row & (j >= 0) & (j < O)
    f = tl.load(value + b * value_b + k * value_k, mask=is_row, other=0.0).to(tl.float32)
    w = tl.load(weight + j[:, None] * weight_o + i[None, :] * weight_i, mask=inside & known[:, None], other=0.0)
    w = w.to(tl.float32)
    if x is not None:
        a = tl.load(x + b[:, None] * x_b + i[None, :] * x_i, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    if u is not None:
        share = f * tl.load(u + b * u_b + j * u_o, mask=known, other=float("nan")).to(tl.float32)
        total += share[:, None] * w
    if v is not None:
        share = f * tl.load(v + b * v_b + j * v_o, mask=known, other=float("nan")).to(tl.float32)
        total += share[:, None] * (of_sign(w, sign_of(a, tl.float32)) if SIGNED else positive(w))
    if MULTIPLY:
        total *= a
    tl.store(out + row[:, None] * I + i[None, :], total.to(out.dtype.element_ty), mask=inside)


def library_relevance(p: Product, weight_positive: Tensor | None, result: Tensor) -> None:
    """Fill ``result`` by way of cuBLAS."""
    B, K, L, O = p.flow.shape
    I, rows = p.weight.shape[1], B * K * L
    scaled_u, scaled_v = (None if t is None else p.flow.new_empty(rows, O) for t in (p.u, p.v))
    if p.u is None and p.v is None:
        scaled_u = p.flow.reshape(rows, O)
    else:
        scale_launch(p, scaled_u, scaled_v).run()
    total, above, below = result.view(rows, I), None, None
    with torch.no_grad():
        if scaled_u is not None:
            torch.mm(scaled_u, p.weight, out=total)
        if scaled_v is not None:
            part = p.weight.clamp(min=0) if weight_positive is None else weight_positive
            if p.signed:
                above, below = torch.mm(scaled_v, part), torch.mm(scaled_v, p.weight - part)
            elif scaled_u is None:
                torch.mm(scaled_v, part, out=total)
            else:
                total.addmm_(scaled_v, part)
    if p.signed or p.multiply:
        finish_launch(p, total, above, below).run()


def scale_launch(p: Product, scaled_u: Tensor | None, scaled_v: Tensor | None) -> Launch:
    B, K, L, O = p.flow.shape
    values = {"flow": p.flow, "u": p.u, "v": p.v, "out_u": scaled_u, "out_v": scaled_v}
    values |= {"rows": B * K * L, "K": K, "L": L, "O": O}
    values |= dict(zip(("flow_b", "flow_k", "flow_l", "flow_o"), strides(p.flow, 4), strict=True))
    values |= dict(zip(("u_b", "u_l", "u_o"), strides(p.u, 3), strict=True))
    values |= dict(zip(("v_b", "v_l", "v_o"), strides(p.v, 3), strict=True))
    return _tiled(scale_rows_kernel, B * K * L, O, values)


def finish_launch(p: Product, total: Tensor, above: Tensor | None, below: Tensor | None) -> Launch:
    B, K, L, _ = p.flow.shape
    values = {"total": total, "above": above, "below": below, "x": p.x}
    values |= {"rows": B * K * L, "K": K, "L": L, "I": p.weight.shape[1]}
    values |= dict(zip(("x_b", "x_l", "x_i"), strides(p.x, 3), strict=True))
    values |= {"ADD": p.u is not None or not p.signed, "MULTIPLY": p.multiply}
    return _tiled(finish_rows_kernel, B * K * L, p.weight.shape[1], values)


def one_hot_launch(
    value: Tensor,
    index: Tensor,
    weight: Tensor,
    u: Tensor | None,
    v: Tensor | None,
    x: Tensor | None,
    signed: bool,
    multiply: bool,
    result: Tensor,
) -> Launch:
    B, K = value.shape
    O, I = weight.shape
    values = {"value": value, "index": index, "weight": weight, "u": u, "v": v, "x": x, "out": result}
    values |= {"rows": B * K, "K": K, "O": O, "I": I}
    for name, t, axes in (
        ("value", value, "bk"),
        ("index", index, "bk"),
        ("weight", weight, "oi"),
        ("u", u, "bo"),
        ("v", v, "bo"),
        ("x", x, "bi"),
    ):
        values |= {f"{name}_{axis}": stride for axis, stride in zip(axes, strides(t, 2), strict=True)}
    values |= {"SIGNED": signed, "MULTIPLY": multiply}
    return _tiled(one_hot_kernel, B * K, I, values)


def _tiled(kernel: Any, rows: int, columns: int, values: dict[str, Any]) -> Launch:
    width, height = next((tile for tile in _TILES if columns <= tile[0]), _TILES[-1])
    grid = (triton.cdiv(rows, height) * triton.cdiv(columns, width),)
    return Launch(kernel, grid, {**values, "BLOCK_M": height, "BLOCK_N": width}, _WARPS, 1)
