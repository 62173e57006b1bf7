"""Proofs of a sign: every operation in the list, on random inputs and arguments, against what it really returns."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastlrp.capture.aggregation import added, largest, segment_softmax
from fastlrp.capture.graph import Constant, Node, Value, substitute
from fastlrp.capture.signs import PROOFS, proves
from fastlrp.kinds.registry import KIND_OF

aten = torch.ops.aten
ENTRIES = (0.0, -0.0, 5e-324, 1e-40, 1e-8, 0.1, 0.5, 0.999, 1.0, 2.5, 6.0, 30.0, 1e4, 3e38, float("inf"), float("nan"))
NUMBERS = (
    -3,
    -2.5,
    -1,
    -0.5,
    -0.0,
    0,
    1e-50,
    0.25,
    0.5,
    1,
    2,
    3,
    4,
    6.5,
    1e9,
    float("inf"),
    float("-inf"),
    float("nan"),
)
TRIES = 150


class Draw:
    """Random tensors and arguments. ``values``: what stands for each value of the graph."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.values: dict[Value, Tensor] = {}
        self.known: set[Value] = set()

    def pick(self, *items: Any) -> Any:
        return self.random.choice(items)

    def number(self) -> Any:
        return self.pick(*NUMBERS)

    def value(self, shape: tuple[int, ...] = (2, 4, 4, 4), known: bool | None = None) -> Value:
        """An activation that may be below zero, or one that is known not to be."""
        known = self.pick(True, True, False) if known is None else known
        dtype = self.pick(torch.float64, torch.float32)
        count = torch.Size(shape).numel()
        plain = torch.rand(count, generator=torch.Generator().manual_seed(self.random.randrange(1 << 30)))
        numbers = plain.double() * self.pick(1, 1, 1e-3, 50)
        if self.pick(True, True, False):
            for _ in range(self.random.randrange(count)):
                numbers[self.random.randrange(count)] = self.pick(*ENTRIES)
        if not known:
            signs = [self.pick(-1.0, 1.0) for _ in range(count)]
            numbers = numbers * torch.tensor(signs, dtype=torch.float64)
        value = Value(len(self.values), "x", (None, *shape[1:]), dtype)
        self.values[value] = numbers.to(dtype).view(shape)
        if known:
            self.known.add(value)
        return value

    def operand(self) -> Any:
        """The second operand of a sum or product."""
        kind = self.pick("value", "value", "number", "constant", "mask")
        if kind == "value":
            return self.value()
        if kind == "number":
            return self.number()
        numbers = torch.rand(4, 4) - 0.3
        return Constant("c", numbers > 0 if kind == "mask" else numbers)

    def window(self, dims: int, most: int = 3) -> list[int]:
        return [self.random.randint(1, most) for _ in range(dims)]


def on(shape: tuple[int, ...], *args: Any, overload: str = "default") -> Callable[[Draw], Any]:
    return lambda d: (overload, (d.value(shape), *args))


def numbers(count: int, overload: str = "default") -> Callable[[Draw], Any]:
    """The value and as many numbers."""
    return lambda d: (overload, (d.value(), *(d.number() for _ in range(count))))


def pool(dims: int, *rest: Callable[[Draw], Any]) -> Callable[[Draw], Any]:
    def draw(d: Draw) -> Any:
        kernel = d.window(dims)
        padding = [d.random.randint(0, k) for k in kernel]
        x = d.value((1, 2, *d.window(dims, 5)))
        return "default", (x, kernel, d.window(dims, 2), padding, *(r(d) for r in rest))

    return draw


def flag(d: Draw) -> bool:
    return bool(d.pick(True, False))


def adaptive(dims: int) -> Callable[[Draw], Any]:
    return lambda d: ("default", (d.value((1, 2, *[5] * dims)), d.window(dims, 6)))


def resized(dims: int, *rest: Any) -> Callable[[Draw], Any]:
    return lambda d: ("default", (d.value((1, 2, *[4] * dims)), d.window(dims, 9), *(r(d) for r in rest)))


def any_pad(d: Draw) -> Any:
    how = d.pick(("reflect",), ("circular", None), ("constant", d.number()))
    return "default", (d.value(), [1, 0, 2, 1], *how)


def padded(dims: int) -> Callable[[Draw], Any]:
    return lambda d: ("default", (d.value((1, 2, *[4] * dims)), [d.random.randint(0, 3) for _ in range(2 * dims)]))


def two(d: Draw) -> Any:
    """Sums and products: a tensor operand or a number, the same value twice now and then."""
    x, other = d.value(), d.operand()
    other = d.pick(x, other, other, other)
    return "Scalar" if isinstance(other, (int, float)) else "Tensor", (x, other)


def scaled(d: Draw) -> Any:
    overload, args = two(d)
    alpha = d.pick(None, d.number())
    if alpha is None:
        return overload, args
    return (overload, (*args, alpha)) if overload == "Scalar" else (overload, args, {"alpha": alpha})


def quotient(d: Draw) -> Any:
    overload, args = two(d)
    mode = d.pick(None, "floor", "trunc")
    return (overload, args) if mode is None else (f"{overload}_mode", args, {"rounding_mode": mode})


def bounds(d: Draw) -> Any:
    low, high = d.pick(None, d.number()), d.pick(None, d.number())
    if d.pick(True, False):
        return "default", (d.value(), low, d.number() if low is None and high is None else high)
    tensors = [Constant("bound", torch.randn(4, 4)) for _ in range(2)]
    return "Tensor", (d.value(), *d.pick((tensors[0], None), (None, tensors[1]), tensors))


def parts(d: Draw) -> Any:
    mask = torch.ones(2, 4, 4, 4, dtype=torch.bool)
    constants = Constant("c", torch.randn(2, 4, 4, 4)), Constant("m", mask)
    return "default", ([d.value(), d.pick(d.value(), d.value(known=True), *constants)], 1)


def powers(d: Draw) -> Any:
    if d.pick(True, True, False):
        return "Tensor_Scalar", (d.value(), d.pick(d.number(), d.random.randint(-4, 4), 3.0000000001, -2.0, -3.0))
    return "Scalar", (d.number(), d.value())


def chosen(d: Draw) -> Any:
    """``max`` and ``min`` along an axis, or of two tensors."""
    return d.pick(("dim", (d.value(), 1)), ("other", (d.value(), d.value())))


OURS = {"aggregate": added, "aggregate_max": largest, "segment_softmax": segment_softmax,
        "custom_backward": lambda result, *rest: result}  # fmt: skip
"""Operations of ours, made of several of ATen's."""
ROW, MAP = (2, 4), (2, 4, 4, 4)
UNARY = (
    "relu relu6 sigmoid hardsigmoid exp square abs selu silu hardswish mish tanh clone detach alias lift_fresh "
    "lift_fresh_copy contiguous squeeze mean sum mT adjoint sqrt log1p expm1 asinh atan sinh erf"
)
DRAWS: dict[str, Callable[[Draw], Any]] = {
    **dict.fromkeys(UNARY.split(), on(MAP)),
    "softmax": lambda d: ("int", (d.value(), d.pick(1, 2, 3))),
    "leaky_relu": numbers(1),
    "prelu": lambda d: ("default", (d.value(), Constant("weight", torch.randn(4)))),
    "rrelu": lambda d: ("default", (d.value(), d.pick(-1.0, 0.1), 1.0)),
    "celu": numbers(1),
    "gelu": lambda d: ("default", (d.value(),), {"approximate": d.pick("none", "tanh")}),
    "hardshrink": numbers(1),
    "softshrink": numbers(1),
    "elu": numbers(3),
    "softplus": numbers(2),
    "threshold": numbers(2),
    "hardtanh": numbers(2),
    "clamp": bounds,
    "clamp_min": numbers(1),
    "clamp_max": numbers(1),
    "pow": powers,
    "add": scaled,
    "sub": scaled,
    "rsub": scaled,
    "mul": two,
    "div": quotient,
    "cat": parts,
    "concat": parts,
    "concatenate": parts,
    "stack": parts,
    "cumsum": on(MAP, 1),
    "col2im": lambda d: ("default", (d.value((1, 8, 9)), [4, 4], [2, 2], [1, 1], [0, 0], [1, 1])),
    "im2col": lambda d: ("default", (d.value(), [2, 2], [1, 1], [1, 1], [1, 1])),
    "upsample_linear1d": resized(1, flag),
    "upsample_bilinear2d": resized(2, flag),
    "upsample_trilinear3d": resized(3, flag),
    **{f"{how}{n}d": resized(n) for n in (1, 2, 3) for how in ("upsample_nearest", "_upsample_nearest_exact")},
    **{f"adaptive_avg_pool{n}d": adaptive(n) for n in (1, 2, 3)},
    **{f"adaptive_max_pool{n}d": adaptive(n) for n in (1, 2, 3)},
    **{f"max_pool{n}d": pool(n, lambda d, n=n: d.window(n, 5), flag) for n in (1, 2, 3)},
    "avg_pool1d": pool(1, flag, flag),
    **{f"avg_pool{n}d": pool(n, flag, flag, lambda d: d.pick(None, 1, 3, -2)) for n in (2, 3)},
    **{f"{how}_pad{n}d": padded(n) for n in (1, 2, 3) for how in ("reflection", "replication")},
    "constant_pad_nd": lambda d: ("default", (d.value(), [1, 0, 2, 1], *d.pick((), (d.number(),)))),
    "pad": any_pad,
    "view": on(ROW, [2, 2, 2]),
    "reshape": on(ROW, [2, 2, 2]),
    "view_as": lambda d: ("default", (d.value(ROW), d.value((2, 2, 2), known=False))),
    "reshape_as": lambda d: ("default", (d.value(ROW), d.value((2, 2, 2), known=False))),
    "expand_as": lambda d: ("default", (d.value((2, 1)), d.value(ROW, known=False))),
    "type_as": lambda d: ("default", (d.value(), d.value(known=False))),
    "to": lambda d: ("dtype", (d.value(), torch.float16)),
    "_to_copy": lambda d: ("default", (d.value(),), {"dtype": torch.bfloat16}),
    "flatten": on(MAP, 1, overload="using_ints"),
    "unflatten": on(ROW, 1, [2, 2], overload="int"),
    "permute": on(MAP, [0, 2, 3, 1]),
    "transpose": on(MAP, 1, 2, overload="int"),
    "swapaxes": on(MAP, 1, 2),
    "movedim": on(MAP, 1, 2, overload="int"),
    "t": on(ROW),
    "unsqueeze": on(ROW, 1),
    "select": on(MAP, 1, 2, overload="int"),
    "slice": on(MAP, 1, 1, 3, overload="Tensor"),
    "narrow": on(MAP, 1, 1, 2),
    "chunk": on(MAP, 2, 1),
    "split": on(MAP, 2, 1, overload="Tensor"),
    "split_with_sizes": on(MAP, [1, 3], 1),
    "unbind": on(MAP, 1, overload="int"),
    "expand": on((2, 1), [2, 3]),
    "repeat": on(ROW, [1, 2]),
    "tile": on(ROW, [1, 2]),
    "repeat_interleave": on(ROW, 2, 1, overload="self_int"),
    "roll": on(ROW, [1], [1]),
    "flip": on(ROW, [1]),
    "pixel_shuffle": on(MAP, 2),
    "pixel_unshuffle": on(MAP, 2),
    "channel_shuffle": on(MAP, 2),
    "max": chosen,
    "min": chosen,
    "amax": on(MAP, [1, 2]),
    "amin": on(MAP, [1]),
    "median": on(MAP, 1, overload="dim"),
    "kthvalue": on(MAP, 2, 1),
    "mode": on(MAP, 1),
    "topk": on(MAP, 2, 1),
    "sort": on(MAP, 1),
    "cummax": on(MAP, 1),
    "cummin": on(MAP, 1),
    "index_select": on(ROW, 1, torch.tensor([2, 0])),
    "index": on(ROW, [None, torch.tensor([2, 0])], overload="Tensor"),
    "custom_backward": lambda d: ("default", (d.value(), [d.value(known=False)], [], 0)),
    **dict.fromkeys(list(OURS)[:3], on(MAP, 1, Constant("places", torch.tensor([0, 2, 2, 0])), 3)),
}  # fmt: skip


def drawn(name: str, seed: int) -> tuple[Node, Draw, Tensor] | None:
    """A node of this operation and what it returns; None where PyTorch refuses the arguments."""
    d = Draw(seed)
    overload, args, *kwargs = DRAWS[name](d)
    call = OURS[name] if name in OURS else getattr(getattr(aten, name), overload)
    given = torch.utils._pytree.tree_map(
        lambda leaf: leaf.tensor() if isinstance(leaf, Constant) else leaf, substitute(args, d.values)
    )
    try:
        found = call(*given, **(kwargs[0] if kwargs else {}))
    except (RuntimeError, ZeroDivisionError, IndexError):
        return None
    found = found[0] if isinstance(found, (tuple, list)) else found
    output = Value(-1, "y", (None,), found.dtype)
    node = Node(KIND_OF[name], name, call, args, kwargs[0] if kwargs else {}, tuple(d.values), output)
    return node, d, found


def test_every_proof_is_tried():
    assert DRAWS.keys() == PROOFS.keys()


@pytest.mark.parametrize("name", sorted(PROOFS))
def test_what_is_proved_holds(name: str) -> None:
    proved = 0
    for seed in range(TRIES):
        found = drawn(name, seed)
        if found is None:
            continue
        node, draw, y = found
        if proves(node, draw.known):
            proved += 1
            assert not bool((y < 0).any()), (seed, node.args, node.kwargs, y.min())
    assert proved, "nothing was proved: the draws are never of the form that the proof is about"


def test_somebodys_own_operator_of_a_known_name_proves_nothing() -> None:
    library = torch.library.Library("fastlrp_test_signs", "DEF")
    library.define("relu(Tensor x) -> Tensor")
    call = torch.ops.fastlrp_test_signs.relu.default
    x = Value(0, "x", (None, 4), torch.float64)
    node = Node("activation", "relu", call, (x,), {}, (x,), Value(1, "y", (None, 4), torch.float64))
    assert not proves(node, {x})


@pytest.mark.parametrize("name", ["neg", "log_softmax", "tanhshrink", "upsample_bicubic2d", "batch_norm", "einsum"])
def test_what_is_not_listed_proves_nothing(name: str) -> None:
    x = Value(0, "x", (None, 4), torch.float64)
    call = getattr(aten, name).default if name == "neg" else abs
    node = Node("mul", name, call, (x,), {}, (x,), Value(1, "y", (None, 4), torch.float64))
    assert not proves(node, {x})


@pytest.mark.parametrize(("dtype", "expected"), [(torch.bool, True), (torch.uint8, True), (torch.int64, False)])
def test_integers(dtype: torch.dtype, expected: bool) -> None:
    """What has no sign has none; other integers overflow, so that nothing is proved even of a square."""
    x = Value(0, "x", (None, 4), torch.float64)
    node = Node("activation", "square", aten.square.default, (x,), {}, (x,), Value(1, "y", (None, 4), dtype))
    assert proves(node, {x}) == expected
