"""Single layers of iNNvestigate and RelevancePropagation.jl, every entry of their files."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastlrp.reference import weightless
from fastlrp.reference.redistribution import Affine
from tests import goldens
from tests.reference import textbook as rules
from tests.reference.cases import relative_error, stabilizer

pytestmark = goldens.needs_goldens

Propagate = Callable[[Affine, Tensor, Tensor], Tensor]


def innvestigate(epsilon: float) -> dict[str, Propagate]:
    st = stabilizer(epsilon)
    return {
        "LRPZ": lambda l, x, R: rules.epsilon(l, x, R, stabilizer(0.0))[0],
        "LRPEpsilon": lambda l, x, R: rules.epsilon(l, x, R, st)[0],
        "LRPZPlus": lambda l, x, R: rules.zplus(l, x, R, stabilizer(0.0))[0],
        "LRPAlpha1Beta0": lambda l, x, R: rules.alpha_beta(l, x, R, stabilizer(0.0), 1, 0)[0],
        "LRPAlpha2Beta1": lambda l, x, R: rules.alpha_beta(l, x, R, stabilizer(0.0), 2, 1)[0],
        "LRPWSquare": lambda l, x, R: rules.wsquare(l, x, R, stabilizer(0.0))[0],
        "LRPFlat": lambda l, x, R: rules.flat(l, x, R, stabilizer(0.0))[0],
    }


INNVESTIGATE = innvestigate(1e-7)


@pytest.fixture(scope="module")
def keras() -> dict[str, Tensor]:
    return {name: goldens.double(array) for name, array in goldens.load("innvestigate_layers.npz").items()}


def nhwc(y: Tensor) -> Tensor:
    """(B, C, H, W) flattened as Keras does."""
    return y.movedim(1, -1).flatten(1)


@pytest.mark.parametrize("layer", ["Dense", "Dense_relu", "Conv2D_relu", "MaxPooling2D"])
@pytest.mark.parametrize("method", list(INNVESTIGATE))
def test_innvestigate(method: str, layer: str, keras: dict[str, Tensor]) -> None:
    x = keras["input"].movedim(-1, 1)
    output, expected = keras[f"{method}/{layer}/output"], keras[f"{method}/{layer}/attribution"]
    affine = None
    if layer == "MaxPooling2D":
        y = F.max_pool2d(x, 2)
    else:
        kernel = keras[f"{method}/{layer}/weights__0"]
        kernel = kernel[None, None] if kernel.dim() == 2 else kernel
        affine = Affine(F.conv2d, kernel.permute(3, 2, 0, 1), keras[f"{method}/{layer}/weights__1"])
        y = affine.apply(x, affine.weight, affine.bias)
        y = y.clamp(min=0) if layer.endswith("relu") else y
    assert relative_error(nhwc(y), output) < 1e-6  # measured: 7.0e-8

    flat = torch.zeros_like(output).scatter_(1, output.argmax(1, keepdim=True), output.amax(1, keepdim=True))
    R = flat.reshape(y.shape[0], *y.shape[2:], y.shape[1]).movedim(-1, 1).unsqueeze(1)
    if affine is None:
        relevance, _ = weightless.max_pool(x, R, "winner", [2, 2], [2, 2], [0, 0], [1, 1], False, stabilizer(0.0))
    else:
        relevance = INNVESTIGATE[method](affine, x, R)
    assert relative_error(relevance[:, 0].movedim(1, -1), expected) < 3e-7  # float32 files; measured: 1.4e-7


def test_every_innvestigate_entry_is_tested(keras: dict[str, Tensor]) -> None:
    assert {name.split("/")[0] for name in keras} == {"input", *INNVESTIGATE}


ST = stabilizer(1e-9)
JULIA: dict[str, Propagate] = {
    "ZeroRule": lambda l, x, R: rules.epsilon(l, x, R, ST)[0],
    "EpsilonRule": lambda l, x, R: rules.epsilon(l, x, R, stabilizer(1e-6))[0],
    "GammaRule": lambda l, x, R: rules.modified_weights(l, x, R, ST, lambda w: w + 0.25 * w.clamp(min=0))[0],
    "GeneralizedGammaRule": lambda l, x, R: rules.gamma(l, x, R, ST, 0.25)[0],
    "AlphaBetaRule": lambda l, x, R: rules.alpha_beta(l, x, R, ST, 2, 1)[0],
    "ZPlusRule": lambda l, x, R: rules.zplus(l, x, R, ST)[0],
    "WSquareRule": lambda l, x, R: rules.wsquare(l, x, R, ST, zero_bias=True)[0],
    "FlatRule": lambda l, x, R: rules.flat(l, x, R, ST)[0],
    "ZBoxRule": lambda l, x, R: rules.zbox(l, x, R, ST, 0.0, 1.0)[0],
    # Its own formula is for LayerNorm layers only; on a dense layer the package falls back to its generic step, LRP-0.
    "LayerNormRule": lambda l, x, R: rules.epsilon(l, x, R, ST)[0],
}


@pytest.fixture(scope="module")
def julia() -> dict[str, Tensor]:
    return {name: goldens.double(a) for name, a in goldens.load("relevancepropagation_jl_dense.npz").items()}


@pytest.mark.parametrize("layer", ["Dense_relu", "Dense_identity"])
@pytest.mark.parametrize("rule", list(JULIA))
def test_relevancepropagation_jl(rule: str, layer: str, julia: dict[str, Tensor]) -> None:
    x = julia["input"]
    if layer == "Dense_relu":
        affine = Affine(F.linear, julia["weight"], julia["bias"])
        R = affine.apply(x, affine.weight, affine.bias).clamp(min=0)
    else:
        affine = Affine(F.linear, torch.eye(3, 4, dtype=torch.float64), None)
        R = affine.apply(x, affine.weight, None)
    relevance = JULIA[rule](affine, x, R.unsqueeze(1))[:, 0]
    assert relative_error(relevance, julia[f"{rule}/{layer}"]) < 3e-7  # float32 files; measured: 9.4e-8


def test_every_relevancepropagation_jl_entry_is_tested(julia: dict[str, Tensor]) -> None:
    assert {name.split("/")[0] for name in julia} == {"weight", "bias", "input", *JULIA}
