"""Relevance of any model by one gradient, and nothing of fastlrp's: the oracle for whole models.

LRP is ``x * gradient`` of a network in which every layer keeps its output and gets another derivative (Montavon et al.
2019, section 10.3): if a layer distributes ``R_i = x_i sum_j p_ij / st(z_j) R_j`` over contributions ``x_i p_ij``,
then with ``R_j = y_j g_j`` it is ``x_i`` times the derivative of ``sum_i x_i p_ij * [y / st(z)]``, the bracket held
constant. So:

* convolutions and linear layers: contributions under epsilon or z+;
* sums, means, average pools: their own derivative, times ``y / st(y)``;
* activations and normalisations, which pass relevance: ``x * [y / x]`` (a ReLU's own derivative);
* products: the gate held constant, or half of each operand's derivative where there is no gate.

PyTorch's functions are intercepted where they are called, by modules or not. Batch norms are either merged beforehand
(:func:`merged`), or pass relevance as layers of their own. What it cannot state is relevance of an activation that is
exactly zero (a batch norm after a ReLU, sigmoid(0)).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

AFFINE = {
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear",
}  # fmt: skip
PASS = {
    "sigmoid", "tanh", "silu", "gelu", "hardswish", "hardsigmoid", "elu", "leaky_relu", "softplus", "mish", "selu",
    "celu", "prelu", "softsign", "softmax", "log_softmax", "relu6", "hardtanh", "clamp", "layer_norm", "group_norm",
    "instance_norm", "batch_norm", "rms_norm", "threshold", "exp", "log_sigmoid", "softshrink", "tanhshrink",
    "square", "pow", "__pow__", "normalize",
}  # fmt: skip
GATES = {"sigmoid", "hardsigmoid", "softmax"}
SUMS = {"add", "__add__", "__radd__", "__iadd__", "add_", "sub", "__sub__", "__rsub__", "rsub", "__isub__", "sub_",
        "mean", "sum", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
        "adaptive_avg_pool3d", "matmul", "__matmul__", "mm", "addmm", "cumsum", "einsum", "fold"}  # fmt: skip
PRODUCTS = {"mul", "__mul__", "__rmul__", "multiply", "mul_", "__imul__"}
QUOTIENTS = {"div", "__truediv__", "true_divide", "div_"}


def stabilized(z: Tensor, epsilon: float) -> Tensor:
    return z + epsilon * torch.where(z < 0, -1.0, 1.0).to(z.dtype)


class Surrogate(TorchFunctionMode):
    """Outputs as they are, derivatives as LRP has them.

    Args:
        rules: ``"epsilon"`` or ``"zplus"`` by function name; epsilon where a name is missing.
        epsilon: of every stabilizer.
    """

    def __init__(self, rules: dict[str, str] | None = None, epsilon: float = 0.0) -> None:
        super().__init__()
        self.rules, self.epsilon = rules or {}, epsilon

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        in_place = (name.endswith("_") and not name.endswith("__")) or (name.startswith("__i") and name != "__index__")
        before = args[0].clone() if in_place else None
        if kwargs.get("inplace"):
            kwargs = {**kwargs, "inplace": False}
        y = func(*args, **kwargs)
        if not isinstance(y, Tensor) or not y.is_floating_point() or not y.requires_grad:
            return y
        if in_place:
            args = (before, *args[1:])
        with torch._C.DisableTorchFunction():
            if name in ("relu", "relu_"):
                return y.clone()  # It needs its own output, which the model may change in place.
            if name in AFFINE:
                return self._affine(func, y, args, kwargs)
            if name.rstrip("_") in PASS:
                return self._pass(name.rstrip("_"), y, args[0])
            if name in PRODUCTS:
                return self._product(y, args)
            if name in QUOTIENTS and isinstance(args[1], Tensor):
                return args[0] / args[1].detach()
            linear = name in SUMS or (name == "interpolate" and "nearest" not in str(kwargs.get("mode")))
            if linear and self.epsilon:
                return _with_derivative(y, y, self.epsilon)
        return y

    def _affine(self, func: Any, y: Tensor, args: Any, kwargs: Any) -> Tensor:
        if self.rules.get(func.__name__, "epsilon") == "epsilon":
            return _with_derivative(y, y, self.epsilon)
        x, weight, *rest = args
        bias = rest.pop(0) if rest else kwargs.get("bias")
        kwargs = {key: value for key, value in kwargs.items() if key != "bias"}

        def apply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return func(x, weight, bias, *rest, **kwargs)

        above, below = weight.clamp(min=0), weight.clamp(max=0)
        positive = apply(x.clamp(min=0), above, None if bias is None else bias.clamp(min=0))
        positive = positive + apply(x.clamp(max=0), below, None)
        return _with_derivative(positive, y, self.epsilon)

    @staticmethod
    def _pass(name: str, y: Tensor, x: Tensor) -> Tensor:
        slope = torch.where(x == 0, 0.0, y / x).detach()
        result = x * slope
        result = result + (y - result).detach()
        result.is_gate = name in GATES  # type: ignore[attr-defined]
        return result

    @staticmethod
    def _product(y: Tensor, args: Any) -> Tensor:
        a, b = args[:2]
        if not (isinstance(a, Tensor) and isinstance(b, Tensor) and a.requires_grad and b.requires_grad):
            return y
        if a is b:
            return a * a.detach()
        signals = [t for t in (a, b) if not getattr(t, "is_gate", False)]
        signals = [t for t in signals if t.shape == y.shape] or signals or [a, b]
        if len(signals) == 2:
            half = (a * b.detach() + a.detach() * b) / 2
            return half + (y - half).detach()
        return a * b.detach() if signals[0] is a else a.detach() * b


def _with_derivative(numerator: Tensor, y: Tensor, epsilon: float) -> Tensor:
    """Value ``y``; derivative that of ``numerator``, times ``y / st(numerator)``."""
    denominator = stabilized(numerator.detach(), epsilon)
    scaled = numerator * torch.where(denominator == 0, 0.0, y.detach() / denominator)
    return scaled + (y - scaled).detach()


def relevance(
    model: nn.Module,
    x: Tensor,
    targets: Sequence[int],
    rules: dict[str, str] | None = None,
    epsilon: float = 0.0,
    pick: Callable[[Any], Tensor] = lambda output: output,
) -> Tensor:
    """``(B, K, *x.shape[1:])`` of the target's score, in float64.

    Args:
        model: in evaluation mode; copied, then converted to float64.
        pick: the output ``(B, C)`` out of what the model returns.
    """
    model = copy.deepcopy(model).double().requires_grad_(False)
    found = []
    for target in targets:
        point = x.detach().double().clone().requires_grad_(True)
        with Surrogate(rules, epsilon):
            output = pick(model(point))
        (gradient,) = torch.autograd.grad(output[:, target].sum(), point)
        found.append(point.detach() * gradient)
    return torch.stack(found, 1)


def merged(model: nn.Module, pairs: Sequence[tuple[str, str]]) -> nn.Module:
    """A copy with batch norms merged into the layers before them, ``(path of the layer, path of the batch norm)``."""
    model = copy.deepcopy(model).double()
    for layer_path, norm_path in pairs:
        layer, norm = model.get_submodule(layer_path), model.get_submodule(norm_path)
        if isinstance(layer, nn.Linear):
            fused = nn.utils.fusion.fuse_linear_bn_eval(layer, norm)
        else:
            fused = nn.utils.fusion.fuse_conv_bn_eval(layer, norm, transpose="Transpose" in type(layer).__name__)
        for path, replacement in ((layer_path, fused), (norm_path, nn.Identity())):
            owner, _, key = path.rpartition(".")
            setattr(model.get_submodule(owner), key, replacement)
    return model


def relative_error(ours: Tensor, expected: Tensor) -> float:
    """Largest ``|ours - expected| / |expected|`` (2-norm) over samples and targets."""
    assert ours.shape == expected.shape
    difference, size = (ours - expected).flatten(2).norm(dim=2), expected.flatten(2).norm(dim=2)
    assert bool((size > 0).all()), "the oracle's relevance is zero: nothing is compared"
    return float((difference / size).max())


def input_times_gradient(model: nn.Module, x: Tensor) -> Tensor:
    """Of outputs 0 and 2 of ``(B, C)``, by autograd."""
    point = x.clone().requires_grad_(True)
    output = model(point)
    return torch.stack([x * torch.autograd.grad(output[:, t].sum(), point, retain_graph=True)[0] for t in (0, 2)], 1)
