"""Each of Zennit's rules on each kind of layer: the numbers, and that a kernel computes them where there is one.

A hook that was not recognised would still give the right numbers, run as it is; so the rules in the plan are compared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.compat.zennit.both import agree, difference, ours, rules_of, seeded, theirs

zennit = pytest.importorskip("zennit.rules")
from zennit.composites import LayerMapComposite, NameMapComposite  # noqa: E402
from zennit.core import BasicHook, ParamMod, Stabilizer  # noqa: E402
from zennit.types import Activation, BatchNorm, Linear  # noqa: E402

TARGET = torch.eye(4, dtype=torch.float64)[[1, 3]]

WEIGHTED: dict[str, tuple[Callable[[], Any], str]] = {
    "epsilon": (lambda: zennit.Epsilon(), "Epsilon(epsilon=1e-06, zero_bias=False"),
    "lrp0": (lambda: zennit.Epsilon(0), "Epsilon(epsilon=0.0,"),
    "epsilon_zero_bias": (lambda: zennit.Epsilon(0.1, zero_params="bias"), "Epsilon(epsilon=0.1, zero_bias=True"),
    "epsilon_clip": (lambda: zennit.Epsilon(Stabilizer(0.3, clip=True)), "Epsilon(epsilon=Stabilizer(epsilon=0.3,"),
    "epsilon_norm": (lambda: zennit.Epsilon(Stabilizer(0.3, norm_scale=True)), "Epsilon(epsilon=Stabilizer("),
    "norm": (lambda: zennit.Norm(0.01), "Epsilon(epsilon=0.01,"),
    "zplus": (lambda: zennit.ZPlus(), "ZPlus(stabilizer=1e-06, zero_bias=False"),
    "zplus_zero_bias": (lambda: zennit.ZPlus(zero_params=["bias"]), "ZPlus(stabilizer=1e-06, zero_bias=True"),
    "zplus_norm_clip": (
        lambda: zennit.ZPlus(Stabilizer(0.4, clip=True, norm_scale=True)),
        "ZPlus(stabilizer=Stabilizer(epsilon=0.4, relative='sample', signed=True, clip=True)",
    ),
    "alpha2beta1": (lambda: zennit.AlphaBeta(), "AlphaBeta(alpha=2.0, beta=1.0, stabilizer=1e-06, zero_bias=False"),
    "alpha1beta0": (lambda: zennit.AlphaBeta(1, 0), "AlphaBeta(alpha=1.0, beta=0.0,"),
    "alpha3beta2": (
        lambda: zennit.AlphaBeta(3, 2, stabilizer=0.01, zero_params="bias"),
        "AlphaBeta(alpha=3.0, beta=2.0, stabilizer=0.01, zero_bias=True",
    ),
    "gamma": (lambda: zennit.Gamma(), "Gamma(gamma=0.25, stabilizer=1e-06"),
    "large_gamma": (lambda: zennit.Gamma(20, Stabilizer(0.1, clip=True)), "Gamma(gamma=20.0, stabilizer=Stabilizer("),
    "gamma_without_bias": (lambda: zennit.Gamma(zero_params="bias"), "Gamma as it is"),
    "wsquare": (lambda: zennit.WSquare(), "WSquare(stabilizer=1e-06, zero_bias=False"),
    "wsquare_zero_bias": (lambda: zennit.WSquare(0.1, "bias"), "WSquare(stabilizer=0.1, zero_bias=True"),
    "flat": (lambda: zennit.Flat(), "Flat(stabilizer=1e-06"),
    "flat_zero_params": (lambda: zennit.Flat(0.5, zero_params="bias"), "Flat(stabilizer=0.5"),
    "box": (lambda: zennit.ZBox(-4.0, 5), "ZBox(low=-4.0, high=5.0, stabilizer=1e-06"),
    "function": (lambda: zennit.ZPlus(lambda z: z + 0.01), "ZPlus as it is"),
    "other_axes": (lambda: zennit.Epsilon(Stabilizer(0.1, norm_scale=True, dim=(0, 1))), "Epsilon as it is"),
    "by_hand": (lambda: BasicHook(), "BasicHook as it is"),
    "same_by_hand": (
        lambda: BasicHook(
            input_modifiers=zennit.ZPlus(0.1).input_modifiers,
            param_modifiers=zennit.ZPlus(0.1).param_modifiers,
            output_modifiers=zennit.ZPlus(0.1).output_modifiers,
            gradient_mapper=zennit.ZPlus(0.1).gradient_mapper,
            reducer=zennit.ZPlus(0.1).reducer,
        ),
        "ZPlus(stabilizer=0.1,",
    ),
    "other_reducer": (
        lambda: BasicHook(
            input_modifiers=zennit.Epsilon().input_modifiers,
            param_modifiers=zennit.Epsilon().param_modifiers,
            output_modifiers=zennit.Epsilon().output_modifiers,
            gradient_mapper=zennit.Epsilon().gradient_mapper,
            reducer=lambda inputs, gradients: 2 * inputs[0] * gradients[0],
        ),
        "BasicHook as it is",
    ),
    "other_clamp": (lambda: BasicHook(param_modifiers=[zennit.ClampMod(min=0.1)]), "BasicHook as it is"),
    "gamma_mod": (lambda: BasicHook(param_modifiers=[zennit.GammaMod(0.3, min=0.0)]), "BasicHook as it is"),
}
"""Hook, and how the rule of the plan begins."""

NETWORKS: dict[str, tuple[Callable[[], list[nn.Module]], tuple[int, ...]]] = {
    "mlp": (lambda: [nn.Linear(7, 16), nn.ReLU(), nn.Linear(16, 4)], (7,)),
    "conv": (
        lambda: [nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 6, (2, 3), groups=2, bias=False),
                 nn.Flatten(), nn.Linear(48, 4)],
        (3, 9, 8),
    ),
    "transposed": (
        lambda: [nn.ConvTranspose1d(3, 6, 3, stride=2, padding=1, output_padding=1), nn.Tanh(), nn.Flatten(),
                 nn.Linear(60, 4)],
        (3, 5),
    ),
}  # fmt: skip


def _input(*shape: int) -> Tensor:
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


@pytest.fixture(autouse=True)
def _seed() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(11)
        yield


@pytest.mark.each_value(3)
@pytest.mark.parametrize("network", list(NETWORKS))
@pytest.mark.parametrize("rule", list(WEIGHTED))
def test_rule_on_layers_with_a_weight(network: str, rule: str) -> None:
    make, shape = NETWORKS[network]
    hook, shown = WEIGHTED[rule]
    model = seeded(*make())
    found = agree(model, LayerMapComposite([(Linear, hook()), (Activation, zennit.Pass())]), _input(*shape), TARGET)
    layers = [(path, m) for path, m in model.named_modules() if isinstance(m, Linear)]
    assert len(layers) > 1
    for path, layer in layers:
        expected = shown
        if layer.bias is None:  # Then there is none to leave out.
            expected = shown.replace("zero_bias=True", "zero_bias=False").replace("Gamma as it is", "Gamma(gamma=0.25")
        assert found[path][0].startswith(expected), found[path]


def test_without_weights_nothing_arrives() -> None:
    model, x = seeded(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 4)), _input(5)
    composite = NameMapComposite([(["0"], zennit.Epsilon(0.1, zero_params=["weight"]))])
    attributor = ours.Gradient(model, composite)
    assert not attributor(x, TARGET)[1].any()
    assert not theirs.Gradient(model, composite)(x, TARGET)[1].any()
    assert rules_of(attributor)["0"] == ["Epsilon as it is"]


ELSEWHERE: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any], str]] = {
    "pass_relu": (nn.ReLU, zennit.Pass, "Pass()"),
    "pass_gelu": (nn.GELU, zennit.Pass, "Pass()"),
    "pass_prelu": (nn.PReLU, zennit.Pass, "Pass()"),
    "pass_batch_norm": (lambda: nn.BatchNorm2d(6), zennit.Pass, "Pass()"),
    "pass_conv": (lambda: nn.Conv2d(6, 6, 3, padding=1), zennit.Pass, "Pass()"),
    "pass_max_pool": (lambda: nn.MaxPool2d(3, 1, 1), zennit.Pass, "Pass as it is"),
    "pass_softsign": (nn.Softsign, zennit.Pass, "Pass()"),
    "pass_tanhshrink": (nn.Tanhshrink, zennit.Pass, "Pass()"),
    "deconvnet": (nn.ReLU, zennit.ReLUDeconvNet, "Deconvnet()"),
    "guided": (nn.ReLU, zennit.ReLUGuidedBackprop, "GuidedBackprop()"),
    "deconvnet_sigmoid": (nn.Sigmoid, zennit.ReLUDeconvNet, "Deconvnet()"),
    "guided_sigmoid": (nn.Sigmoid, zennit.ReLUGuidedBackprop, "ReLUGuidedBackprop as it is"),
    "beta_smooth": (nn.ReLU, zennit.ReLUBetaSmooth, "BetaSmooth(beta=10.0)"),
    "beta_smooth_5": (nn.ReLU, lambda: zennit.ReLUBetaSmooth(5), "BetaSmooth(beta=5.0)"),
    "norm_avg_pool": (lambda: nn.AvgPool2d(2, 1), zennit.Norm, "Norm(stabilizer=1e-06"),
    "norm_adaptive": (lambda: nn.AdaptiveAvgPool2d((3, 2)), lambda: zennit.Norm(0.1), "Norm(stabilizer=0.1"),
    "epsilon_avg_pool": (lambda: nn.AvgPool2d(2), lambda: zennit.Epsilon(0.1, "bias"), "Norm(stabilizer=0.1"),
    "zplus_avg_pool": (lambda: nn.AvgPool2d(2), zennit.ZPlus, "ZPlus as it is"),
    "flat_avg_pool": (lambda: nn.AvgPool2d(2), zennit.Flat, "Flat as it is"),
    "norm_max_pool": (lambda: nn.MaxPool2d(2), lambda: zennit.Norm(0.1), "Proportional(stabilizer="),
    "norm_relu": (nn.ReLU, lambda: zennit.Norm(0.1), "Proportional(stabilizer="),
    "norm_tanh": (nn.Tanh, lambda: zennit.Norm(0.1), "Proportional(stabilizer="),
    "epsilon_batch_norm": (lambda: nn.BatchNorm2d(6), lambda: zennit.Epsilon(0.1), "Epsilon(epsilon=0.1"),
    "zero_batch_norm": (lambda: nn.BatchNorm2d(6), lambda: zennit.Epsilon(0.1, "bias"), "Epsilon as it is"),
    "zplus_batch_norm": (lambda: nn.BatchNorm2d(6), lambda: zennit.ZPlus(0.1), "ZPlus as it is"),
}


@pytest.mark.parametrize("name", list(ELSEWHERE))
def test_rule_on_layers_without_a_weight(name: str) -> None:
    layer, hook, shown = ELSEWHERE[name]
    middle, x = layer(), _input(3, 8, 7)
    width = middle.eval()(torch.zeros(1, 6, 6, 5)).numel()
    model = seeded(nn.Conv2d(3, 6, 3), middle, nn.Flatten(), nn.Linear(width, 4))
    names = NameMapComposite([(["0", "3"], zennit.Epsilon(0.1)), (["1"], hook())])
    assert agree(model, names, x, TARGET)["1"][0].startswith(shown)


BOXES: dict[str, tuple[Callable[[Tensor], tuple[Any, Any]], bool]] = {
    "integers": (lambda x: (-4, 4), True),
    "zero_dimensional": (lambda x: (torch.tensor(-4.0), torch.tensor(4.0)), True),
    "channels": (lambda x: (torch.full((1, 3, 1, 1), -4.0), torch.tensor([4.0, 5, 6]).view(1, 3, 1, 1)), True),
    "channels_without_the_last_axes": (lambda x: (torch.full((1, 3), -4.0), torch.tensor([[4.0, 5, 6]])), True),
    "entries": (lambda x: (x.amin(0, keepdim=True) - 1, x.amax(0, keepdim=True) + 1), True),
    "size_of_the_input": (lambda x: (torch.full_like(x, -4.0), 4.0), True),
    "larger_batch": (lambda x: (torch.full((5, *x.shape[1:]), -4.0), torch.full((5, *x.shape[1:]), 4.0)), True),
    "other_for_each_sample": (lambda x: (x - 1, x + torch.rand_like(x)), False),
}


@pytest.mark.parametrize("name", list(BOXES))
def test_box(name: str) -> None:
    bounds, translated = BOXES[name]
    model, x = seeded(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(180, 4)), _input(3, 8, 7)
    low, high = bounds(x)
    composite = NameMapComposite([(["0"], zennit.ZBox(low, high)), (["1"], zennit.Pass()), (["3"], zennit.Epsilon())])
    assert agree(model, composite, x, TARGET)["0"][0].startswith("ZBox(low" if translated else "ZBox as it is")


def test_subclass_of_a_rule_is_that_rule() -> None:
    class Mine(zennit.ZPlus):
        def __init__(self) -> None:
            super().__init__(stabilizer=0.2)

    class Other(zennit.ZPlus):
        def backward(self, module: Any, grad_input: Any, grad_output: Any) -> Any:
            return tuple(3 * part for part in super().backward(module, grad_input, grad_output))

    model, x = seeded(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4)), _input(5)
    found = agree(model, NameMapComposite([(["0"], Mine()), (["2"], Other())]), x, TARGET)
    assert found == {"0": ["ZPlus(stabilizer=0.2, zero_bias=False)"], "1": ["Gradient()"], "2": ["Other as it is"]}


def test_hook_whose_copy_forgets_its_parameters_is_what_its_copy_is() -> None:
    """Zennit puts copies on the modules; a hook without a ``copy`` of its own comes out with its defaults."""

    class Times(zennit.Pass):
        def __init__(self, factor: float = 2.0) -> None:
            super().__init__()
            self.factor = factor

        def backward(self, module: Any, grad_input: Any, grad_output: Any) -> Any:
            return (self.factor * grad_output[0],)

    model, x = seeded(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4)), _input(5)
    assert agree(model, LayerMapComposite([(nn.ReLU, Times(7.0))]), x, TARGET)["1"] == ["Times as it is"]


def test_hook_that_returns_nothing_leaves_the_gradient() -> None:
    seen = []

    class Looks(zennit.Hook):
        def backward(self, module: Any, grad_input: Any, grad_output: Any) -> None:
            seen.append((type(module), grad_input[0].shape, grad_output[0].shape))

    model, x = seeded(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4)), _input(5)
    agree(model, LayerMapComposite([(nn.Linear, Looks())]), x, TARGET)
    assert seen[:2] == seen[2:] == [(nn.Linear, (2, 6), (2, 4)), (nn.Linear, (2, 5), (2, 6))]


def test_hooks_as_they_are_take_many_targets() -> None:
    hook = BasicHook(param_modifiers=[ParamMod(lambda w, _: w.clamp(min=0), zero_params="bias")])
    model, x = seeded(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4)), _input(5)
    composite = LayerMapComposite([(nn.Linear, hook), (nn.ReLU, zennit.Pass())])
    many = torch.randn(3, 2, 4, dtype=torch.float64)
    attributor = theirs.Gradient(model, composite)
    expected = torch.stack([attributor(x, one)[1] for one in many])
    assert difference(ours.Gradient(model, composite)(x, many)[1], expected) <= 1e-12


def test_batch_norm_without_a_canonizer_is_a_layer_of_its_own() -> None:
    """fastlrp's own composites merge it; under Zennit's it stays, and the convolution's rule sees the bare weights."""
    model = seeded(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(180, 4))
    layers = LayerMapComposite([(Linear, zennit.ZPlus()), ((Activation, BatchNorm), zennit.Pass())])
    found = agree(model, layers, _input(3, 8, 7), TARGET)
    assert found["1"] == ["Pass()"]
    merged = ours.Gradient(model, "zplus")(_input(3, 8, 7), TARGET)[1]
    assert difference(merged, theirs.Gradient(model, layers)(_input(3, 8, 7), TARGET)[1]) > 0.01
