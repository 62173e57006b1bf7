"""Reads an operation's arguments into the attributes that its kind needs: sizes, strides, constants."""

from __future__ import annotations

from typing import Any

import torch

from fastlrp.capture.graph import Constant, Node, Value, leaves

_POOL_DIMS = {"1d": 1, "2d": 2, "3d": 3}


def bind(target: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """Arguments of an ATen overload by name, defaults included; empty for anything else."""
    if not isinstance(target, torch._ops.OpOverload):
        return {}
    bound = {a.name: a.default_value for a in target._schema.arguments}
    bound.update(zip((a.name for a in target._schema.arguments), args, strict=False))
    bound.update(kwargs)
    return bound


def describe(node: Node, target: Any) -> None:
    """Fill ``node.attributes``; turn the node into kind ``unknown`` if its form is not one that its kind can treat."""
    bound = bind(target, node.args, node.kwargs)
    fill = {
        "conv": _conv,
        "linear": _linear,
        "batch_norm": _batch_norm,
        "normalization": lambda n, b: n.attributes.update(b),
        "max_pool": _pool,
        "avg_pool": _pool,
        "adaptive_avg_pool": _adaptive,
        "add": _add,
        "mul": _mul,
        "cat": lambda n, b: n.attributes.update(dim=b.get("dim", 0)),
        "activation": _activation,
        "linear_map": _linear_map,
        "move": lambda n, b: n.attributes.update(b, fill=b.get("value") or 0),
        "write": _write,
    }.get(node.kind)
    if fill is not None:
        fill(node, bound)


def _listed(value: Any, n: int, default: int = 0) -> list[int]:
    if value is None or value == []:
        return [default] * n
    items = [value] if isinstance(value, int) else list(value)
    return items * n if len(items) == 1 else items


def _dims(node: Node) -> int:
    return _POOL_DIMS[node.operation[-2:]]


def _conv(node: Node, bound: dict[str, Any]) -> None:
    n = _dims(node)
    weight, bias = bound["weight"], bound.get("bias")
    if not isinstance(weight, Constant) or isinstance(bias, Value):
        node.kind = "unknown"
        return
    stride, dilation = _listed(bound["stride"], n, 1), _listed(bound["dilation"], n, 1)
    padding = bound["padding"]
    if isinstance(padding, str):
        kernel = weight.tensor().shape[2:]
        reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        if padding == "same" and any(r % 2 for r in reach):
            # One more on the right than on the left; canonizers.split_same_padding makes that a pad of its own.
            node.attributes["extra_padding"] = [r % 2 for r in reach]
        padding = [r // 2 for r in reach] if padding == "same" else 0
    transposed = "transpose" in node.operation
    node.attributes.update(
        weight=weight,
        bias=bias,
        stride=stride,
        padding=_listed(padding, n),
        dilation=dilation,
        groups=bound["groups"],
        transposed=transposed,
        output_padding=_listed(bound.get("output_padding", 0), n) if transposed else [0] * n,
    )


def _linear(node: Node, bound: dict[str, Any]) -> None:
    """``linear(x, W, b)``, or ``x @ M`` with a constant matrix ``M`` as ``linear(x, M^T)``."""
    if node.operation == "linear":
        weight, bias, x = bound["weight"], bound.get("bias"), bound["input"]
        transposed = False
    elif node.operation == "addmm":
        weight, bias, x = bound["mat2"], bound["self"], bound["mat1"]
        plain = bound.get("alpha", 1) == 1 and bound.get("beta", 1) == 1
        transposed = True
        if not plain:
            weight = None
    else:
        first, *rest = node.args
        x, weight, bias, transposed = first, rest[0], None, True
    usable = (
        isinstance(weight, Constant)
        and isinstance(x, Value)
        and not isinstance(bias, Value)
        and weight.tensor().dim() == 2
    )
    if not usable:
        node.kind = "linear_map" if bias is None else "unknown"
        _linear_map(node, bound)
        return
    assert isinstance(weight, Constant)
    if transposed:
        matrix = weight
        weight = Constant(f"{matrix.name}.T", lambda: matrix.tensor().t())
    node.attributes.update(weight=weight, bias=bias)


def _linear_map(node: Node, bound: dict[str, Any]) -> None:
    if sum(isinstance(leaf, Value) and leaf.is_differentiable for leaf in leaves((node.args, node.kwargs))) > 1:
        node.kind = "unknown"  # A product of activations.


def _batch_norm(node: Node, bound: dict[str, Any]) -> None:
    if not isinstance(bound.get("running_mean"), Constant):
        node.kind = "unknown"  # Computed from the input.
        return
    node.attributes.update({k: bound[k] for k in ("weight", "bias", "running_mean", "running_var", "eps")})


def _pool(node: Node, bound: dict[str, Any]) -> None:
    n = _dims(node)
    if len(node.inputs[0].shape) != n + 2:
        node.kind = "unknown"  # PyTorch takes (C, *S) too, where the batch stands in the place of the channels.
        return
    node.attributes["dims"] = n
    if node.operation.startswith("adaptive"):
        node.attributes["adaptive"] = True
        return
    kernel = _listed(bound["kernel_size"], n)
    node.attributes.update(
        adaptive=False,
        kernel_size=kernel,
        stride=_listed(bound["stride"], n) if bound.get("stride") not in (None, []) else kernel,
        padding=_listed(bound["padding"], n),
        dilation=_listed(bound.get("dilation"), n, 1),
        ceil_mode=bool(bound["ceil_mode"]),
        count_include_pad=bool(bound.get("count_include_pad", True)),
        divisor_override=bound.get("divisor_override"),
    )


def _adaptive(node: Node, bound: dict[str, Any]) -> None:
    node.attributes["dims"] = _dims(node)
    if len(node.inputs[0].shape) != _dims(node) + 2:
        node.kind = "unknown"


def _add(node: Node, bound: dict[str, Any]) -> None:
    alpha = bound.get("alpha", 1)
    first, second = {"add": (1, alpha), "sub": (1, -alpha), "rsub": (-alpha, 1)}[node.operation]
    node.attributes.update(terms=((node.args[0], first), (node.args[1], second)))


def _mul(node: Node, bound: dict[str, Any]) -> None:
    operands = node.args[:1] if node.operation == "neg" else node.args[:2]
    node.attributes["operands"] = operands
    if bound.get("rounding_mode") is not None:
        node.kind = "unknown"  # A step function.
        return
    if node.operation == "div" and isinstance(node.args[1], Value):
        node.attributes["divides"] = True
        if not isinstance(node.args[0], Value):
            node.kind = "unknown"


def _activation(node: Node, bound: dict[str, Any]) -> None:
    node.attributes.update(parameters={k: v for k, v in bound.items() if not isinstance(v, Value)})
    if any(isinstance(v, Value) for k, v in bound.items() if k not in ("self", "input")):
        node.kind = "unknown"


def _write(node: Node, bound: dict[str, Any]) -> None:
    if bound.get("accumulate") or bound.get("reduce") is not None:
        node.kind = "unknown"  # Adds or multiplies where it writes.
