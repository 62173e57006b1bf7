"""Where Zennit's hooks stand: on modules, whatever these are made of. Everything between them is the plain gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.compat.zennit.both import ZENNIT_1, agree, attribute, check, difference, ours, rules_of, seeded, theirs

rules = pytest.importorskip("zennit.rules")
from zennit.composites import COMPOSITES, EpsilonPlus, LayerMapComposite, NameMapComposite  # noqa: E402
from zennit.layer import Sum  # noqa: E402
from zennit.types import Activation, Linear  # noqa: E402

TARGET = torch.eye(4, dtype=torch.float64)[[1, 3]]


@pytest.fixture(autouse=True)
def _seed() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        yield


def _double(model: nn.Module) -> nn.Module:
    return seeded(model)[0]


class Functional(nn.Module):
    """Modules with functions between them: a functional ReLU, sums, products, concatenation, means, softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(10, 4)  # Registered first, called last.
        self.a, self.b = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(3, 5, 3, padding=1)
        self.c = nn.Conv2d(10, 10, 3, padding=1)
        self.act, self.pool = nn.ReLU(), nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        a, b = F.relu(self.a(x)), self.act(self.b(x))
        mixed = torch.cat([a + b, a * torch.sigmoid(b)], 1)
        y = self.c(self.pool(mixed)) + 0.5 * F.avg_pool2d(mixed, 2)
        weights = torch.softmax(y.flatten(2), -1)
        return self.head((y.flatten(2) * weights).sum(-1) + y.mean((2, 3)) / y.flatten(2).amax(-1))


@pytest.mark.parametrize("name", list(COMPOSITES))
def test_functional_model_under_every_preset(name: str) -> None:
    model, x = _double(Functional()), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    options = {"low": -4.0, "high": 4.0} if name == "epsilon_gamma_box" else {}
    found = agree(model, COMPOSITES[name](**options), x, TARGET)
    functions = found[""]
    assert functions == ["Gradient()"] * len(functions)
    assert len(functions) > 8


def test_first_layer_is_the_first_that_is_registered() -> None:
    model, x = _double(Functional()), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    found = agree(model, COMPOSITES["epsilon_plus_flat"](), x, TARGET)
    assert found["head"][0].startswith("Flat")
    assert found["a"][0].startswith("ZPlus")


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(6, 6) for _ in range(4))
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        weights = (self.q(x) @ self.k(x).transpose(1, 2) / 6**0.5).softmax(-1)
        return self.head(self.norm(x + self.out(weights @ self.v(x))).mean(1))


def test_attention_is_the_gradient_between_its_layers() -> None:
    """Products of activations have Zennit's gradient under Zennit's composites, a rule under fastlrp's own."""
    model, x = _double(Attention()), torch.randn(2, 5, 6, dtype=torch.float64)
    agree(model, EpsilonPlus(), x, TARGET)
    (_, by_zennits), (_, by_ours) = (ours.Gradient(model, c)(x, TARGET) for c in (EpsilonPlus(), "epsilon_plus"))
    assert not torch.allclose(by_zennits, by_ours, rtol=1e-3)


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


class Block(nn.Module):
    """A module of several operations, of which one has a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.inner(x)) + x


class Standardised(nn.Linear):
    """The weight that is used is not the parameter."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean(1, keepdim=True)
        return F.linear(x, weight / weight.norm(dim=1, keepdim=True), self.bias)


class Centred(nn.Linear):
    """An operation beside the product."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(1, keepdim=True))


WHOLE: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any], str]] = {
    "activation_of_ones_own": (Swish, rules.Pass, "Pass()"),
    "its_gradient_is_clipped": (Swish, rules.ReLUDeconvNet, "ReLUDeconvNet as it is"),
    "its_norm": (Swish, lambda: rules.Norm(0.1), "Proportional"),
    "block_passes": (Block, rules.Pass, "Pass()"),
    "block_in_proportion": (Block, lambda: rules.Epsilon(0.1), "Proportional"),
    "sequential_passes": (lambda: nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 6)), rules.Pass, "Pass()"),
    "standardised_zplus": (lambda: Standardised(6, 6), rules.ZPlus, "ZPlus as it is"),
    "standardised_epsilon": (lambda: Standardised(6, 6), rules.Epsilon, "Proportional"),
    "centred_gamma": (lambda: Centred(6, 6), rules.Gamma, "Gamma as it is"),
    "parametrised_zplus": (
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(6, 6)),
        rules.ZPlus,
        "ZPlus as it is",
    ),
    "dropout_passes": (nn.Dropout, rules.Pass, ""),
    "identity_passes": (nn.Identity, rules.Pass, ""),
}


@pytest.mark.parametrize("name", list(WHOLE))
def test_a_module_is_hooked_as_a_whole(name: str) -> None:
    make, hook, shown = WHOLE[name]
    model, x = seeded(nn.Linear(5, 6), make(), nn.Linear(6, 4)), torch.randn(2, 5, dtype=torch.float64)
    found = agree(model, NameMapComposite([(["0", "2"], rules.ZPlus()), (["1"], hook())]), x, TARGET)
    assert [rule.partition("(stabilizer")[0] for rule in found.get("1", [])] == ([shown] if shown else [])


def test_hooks_inside_a_module_that_passes_do_not_matter() -> None:
    model, x = seeded(nn.Linear(5, 6), Block(), nn.Linear(6, 4)), torch.randn(2, 5, dtype=torch.float64)
    found = agree(model, LayerMapComposite([(Block, rules.Pass()), (nn.Linear, rules.ZPlus())]), x, TARGET)
    assert found["1"] == ["Pass()"]
    assert "1.inner" not in found


def test_module_that_is_the_model() -> None:
    model, x = _double(nn.Linear(5, 4)), torch.randn(2, 5, dtype=torch.float64)
    assert agree(model, EpsilonPlus(epsilon=0.1), x, TARGET) == {"": ["Epsilon(epsilon=0.1, zero_bias=False)"]}
    block = seeded(nn.Linear(5, 5), nn.Tanh())
    composite = NameMapComposite([([""], rules.Pass())])
    start = torch.randn(2, 5, dtype=torch.float64)
    assert agree(block, composite, x, start) == {"": ["Pass()"]}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("padding", ["same", "circular", "reflect"])
@pytest.mark.parametrize("rule", ["zplus", "flat", "wsquare", "box", "gamma"])
def test_padding_is_part_of_the_convolution(padding: str, rule: str) -> None:
    """Rules that replace the input see the module's own padding of it, as in Zennit."""
    make = {
        "zplus": rules.ZPlus, "flat": rules.Flat, "wsquare": rules.WSquare, "gamma": rules.Gamma,
        "box": lambda: rules.ZBox(-4.0, 4.0),
    }[rule]  # fmt: skip
    options = {"padding": "same"} if padding == "same" else {"padding": 2, "padding_mode": padding}
    conv = nn.Conv2d(3, 6, 4, **options)
    width = conv(torch.zeros(1, 3, 6, 5)).numel()
    model = seeded(conv, nn.ReLU(), nn.Flatten(), nn.Linear(width, 4))
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    found = agree(model, NameMapComposite([(["0"], make()), (["1"], rules.Pass())]), x, TARGET)
    whole = "as it is" in found["0"][0]
    assert whole == (rule in ("flat", "wsquare", "box"))


def test_weight_of_a_pre_hook() -> None:
    """The older weight norm computes the weight in a pre-hook, from two other parameters, which Zennit then clamps."""
    with pytest.warns(FutureWarning):
        linear = nn.utils.weight_norm(nn.Linear(5, 6))
    model, x = seeded(linear, nn.ReLU(), nn.Linear(6, 4)), torch.randn(2, 5, dtype=torch.float64)
    model(x)
    assert "weight_g" in dict(linear.named_parameters())
    found = agree(model, NameMapComposite([(["0"], rules.Epsilon(0.1)), (["2"], rules.ZPlus())]), x, TARGET)
    assert found["0"] == ["Proportional(stabilizer=Stabilizer(epsilon=0.1, relative=None, signed=True, clip=False))"]


class Reused(nn.Module):
    """A layer and an activation that are called twice, and a module that has two names."""

    def __init__(self, apart: bool) -> None:
        super().__init__()
        self.layer, self.act, self.head = nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 4)
        self.again = self.layer if not apart else nn.Linear(5, 5)
        self.again.load_state_dict(self.layer.state_dict())
        self.other = self.act

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.other(self.again(self.act(self.layer(x)))))


def test_activation_that_is_called_twice() -> None:
    model, x = _double(Reused(apart=True)), torch.randn(2, 5, dtype=torch.float64)
    found = agree(model, EpsilonPlus(), x, TARGET)
    assert found["act"] == ["Pass()", "Pass()"]


def test_layer_that_is_called_twice_has_its_own_input_each_time() -> None:
    """Zennit's hook keeps one input, that of the last call, and uses it for both: there the numbers differ."""
    model, x = _double(Reused(apart=False)), torch.randn(2, 5, dtype=torch.float64)
    apart = _double(Reused(apart=True))
    apart.load_state_dict({**model.state_dict()})
    attributor = ours.Gradient(model, EpsilonPlus())
    found = attributor(x, TARGET)[1]
    assert difference(found, theirs.Gradient(apart, EpsilonPlus())(x, TARGET)[1]) <= 1e-12
    assert difference(found, theirs.Gradient(model, EpsilonPlus())(x, TARGET)[1]) > 0.1
    assert len(rules_of(attributor)["layer"]) == 2


def test_layer_that_is_called_twice_as_it_is() -> None:
    model, x = _double(Reused(apart=False)), torch.randn(2, 5, dtype=torch.float64)
    apart = _double(Reused(apart=True))
    apart.load_state_dict(model.state_dict())
    composite = LayerMapComposite([(nn.Linear, rules.Gamma(zero_params="bias")), (nn.ReLU, rules.Pass())])
    found = ours.Gradient(model, composite)(x, TARGET)[1]
    assert difference(found, theirs.Gradient(apart, composite)(x, TARGET)[1]) <= 1e-12


def test_in_place_activation_reads_its_input_before_it_is_overwritten() -> None:
    """Zennit's hook that reads the input of an in-place ReLU finds its output there."""
    make = lambda inplace: [nn.Linear(5, 6), nn.ReLU(inplace), nn.Linear(6, 4)]  # noqa: E731
    model, plain = seeded(*make(True)), seeded(*make(False))
    plain.load_state_dict(model.state_dict())
    x, composite = torch.randn(2, 5, dtype=torch.float64), COMPOSITES["beta_smooth"]()
    found = ours.Gradient(model, composite)(x, TARGET)[1]
    assert difference(found, theirs.Gradient(plain, composite)(x, TARGET)[1]) <= 1e-12
    assert difference(found, theirs.Gradient(model, composite)(x, TARGET)[1]) > 0.01


class Sums(nn.Module):
    def __init__(self, terms: int, dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(5, 5) for _ in range(terms))
        self.sum, self.head, self.dim = Sum(dim), nn.Linear(5, 4), dim

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.sum(torch.stack([layer(x) for layer in self.layers], dim=self.dim)))


@pytest.mark.parametrize(("terms", "dim", "operation"), [(2, -1, "add"), (2, 1, "add"), (2, 2, "add"), (3, -1, "sum")])
@pytest.mark.parametrize("hook", ["norm", "none", "own"])
def test_sum_module(terms: int, dim: int, operation: str, hook: str) -> None:
    """A sum of two stacked terms is one addition; of more, the operation that it is."""
    model, x = _double(Sums(terms, dim)), torch.randn(2, 5, dtype=torch.float64)
    made = {"norm": rules.Norm(0.2), "none": None, "own": rules.Norm(lambda z: z + 0.1)}[hook]
    composite = LayerMapComposite([(Sum, made), (nn.Linear, rules.ZPlus())])
    attributor = ours.Gradient(model, composite)
    agree(model, composite, x, TARGET)
    attributor(x, TARGET)
    operations = {row.node.path: row.node.operation for row in attributor.plan.rows}
    assert operations["sum"] == ("sum" if hook == "own" else operation)


@pytest.mark.parametrize("name", ["epsilon_plus", "epsilon_gamma_box", "epsilon_alpha2_beta1_flat"])
def test_merged_batch_norm_keeps_zennits_remainder(name: str) -> None:
    """In Zennit 0.5.1 a merged batch norm still divides by sqrt(1 + eps), which a large eps shows. 1.0.0 does not."""
    from zennit.canonizers import SequentialMergeBatchNorm

    model = seeded(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, eps=0.3), nn.ReLU(), nn.Conv2d(6, 6, 3, bias=False), nn.BatchNorm2d(6),
        nn.Flatten(), nn.Linear(24, 8), nn.BatchNorm1d(8, eps=0.1), nn.ReLU(), nn.Linear(8, 4),
    )  # fmt: skip
    options = {"low": -4.0, "high": 4.0} if name == "epsilon_gamma_box" else {}
    options |= {"stabilizer": 0.1, "epsilon": 0.1, "canonizers": [SequentialMergeBatchNorm()]}
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    found = agree(model, COMPOSITES[name](**options), x, TARGET)
    assert not {"1", "4", "7"} & set(found), "the batch norms are folded"
    stabilizer = "0.1," if ZENNIT_1 else "0.0953462"  # The latter is 0.1 / sqrt(1.1).
    assert found["6"][0].startswith(f"Epsilon(epsilon={stabilizer}")


class MergedAsInZennit1:
    """A canonizer that leaves a batch norm with an eps of 0."""

    def __init__(self, norm: Any = None) -> None:
        self.norm, self.before = norm, None if norm is None else (norm.eps, norm.running_mean, norm.running_var)

    def apply(self, root: nn.Module) -> list[Any]:
        found = []
        for norm in (m for m in root.modules() if isinstance(m, nn.BatchNorm1d)):
            found.append(MergedAsInZennit1(norm))
            norm.eps, norm.running_mean, norm.running_var = 0.0, norm.running_mean * 0, norm.running_var * 0 + 1
        return found

    def remove(self) -> None:
        self.norm.eps, self.norm.running_mean, self.norm.running_var = self.before

    def copy(self) -> Any:
        return MergedAsInZennit1()


def test_eps_of_zero_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch 2.10 and 2.11 refuse it, as here, where Zennit's own attributors fail."""
    model = seeded(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
    composite, x = COMPOSITES["epsilon_plus"](canonizers=[MergedAsInZennit1()]), torch.randn(2, 5, dtype=torch.float64)
    expected = attribute(theirs, model, composite, x, TARGET)
    batch_norm = nn.functional.batch_norm

    def refuses(*args: Any, **options: Any) -> Tensor:
        if (args[7] if len(args) > 7 else options["eps"]) <= 0:
            raise ValueError("batch_norm eps must be positive")
        return batch_norm(*args, **options)

    monkeypatch.setattr(nn.functional, "batch_norm", refuses)
    with pytest.raises(ValueError, match="eps must be positive"):
        attribute(theirs, model, composite, x, TARGET)
    check(attribute(ours, model, composite, x, TARGET), expected)
    assert model[1].eps == 1e-5


def test_merged_batch_norm_that_others_read_stays() -> None:
    from zennit.canonizers import NamedMergeBatchNorm

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.bn, self.head = nn.Linear(5, 5), nn.BatchNorm1d(5, eps=0.3), nn.Linear(5, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return self.head(self.bn(y) + y)

    model, x = _double(Net()), torch.randn(2, 5, dtype=torch.float64)
    composite = EpsilonPlus(epsilon=0.1, canonizers=[NamedMergeBatchNorm([(["a"], "bn")])])
    assert agree(model, composite, x, TARGET)["bn"] == ["Pass()"]


def test_pass_where_autograd_refuses_zennits() -> None:
    """The last operation of a group norm has three inputs for autograd; the hook of Zennit 0.5.1 gives one gradient."""
    model, x = seeded(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(48, 4)), torch.randn(2, 3, 6, 5)
    composite = LayerMapComposite([(nn.GroupNorm, rules.Pass()), (Linear, rules.Epsilon())])
    if ZENNIT_1:
        agree(model, composite, x.double(), TARGET)
    else:
        with pytest.raises(RuntimeError, match="incorrect number of values"):
            theirs.Gradient(model, composite)(x.double(), TARGET)
    attributor = ours.Gradient(model, composite)
    attributor(x.double(), TARGET)
    assert rules_of(attributor)["1"] == ["Pass()"]


def test_hooks_on_types_that_several_modules_share() -> None:
    """Zennit's types: convolutions of all kinds, activations of all kinds."""
    model = seeded(nn.ConvTranspose2d(3, 4, 2), nn.SiLU(), nn.Conv2d(4, 3, 3), nn.Hardtanh(), nn.Flatten(),
                   nn.Linear(60, 4))  # fmt: skip
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    found = agree(model, LayerMapComposite([(Linear, rules.AlphaBeta()), (Activation, rules.Pass())]), x, TARGET)
    assert [found[str(i)][0][:6] for i in (0, 1, 2, 3, 5)] == ["AlphaB", "Pass()", "AlphaB", "Pass()", "AlphaB"]
