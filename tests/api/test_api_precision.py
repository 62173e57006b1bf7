"""Products of bfloat16: where they are made, that they lose as little as they may, and that float32 stays the same."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastlrp
from fastlrp import Explainer, composites, precision
from fastlrp.plan.products import reduced
from tests.api.models import relative_error


@pytest.fixture(autouse=True)
def all_layers_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reduced, "LEAST_WORK", 1)
    monkeypatch.setattr(reduced, "NEAREST", 0)


@pytest.fixture(autouse=True)
def a_processor_that_gains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "instruction_set", lambda: "AMX")


@pytest.fixture
def switches() -> Iterator[None]:
    """PyTorch's own, as they were afterwards."""
    matmul, conv = torch.get_float32_matmul_precision(), torch.backends.mkldnn.conv.fp32_precision
    yield
    torch.set_float32_matmul_precision(matmul)
    torch.backends.mkldnn.conv.fp32_precision = conv


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(12, 16, 3, stride=2, padding=1, groups=4), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 5, padding=2, groups=16), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(64, 32),
        nn.ReLU(), nn.Linear(32, 6),
    ).eval()  # fmt: skip


class Block(nn.Module):
    """Attention, a gated sum and two residual connections."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.first, self.second = nn.LayerNorm(16), nn.LayerNorm(16)
        self.up, self.down, self.head = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        n = self.first(x)
        x = x + self.attention(n, n, n, need_weights=False)[0]
        x = x + self.down(torch.nn.functional.gelu(self.up(self.second(x))))
        return self.head(x.mean(1))


X = (2, 3, 16, 16)
COMPOSITES = {
    "epsilon": composites.epsilon,
    "epsilon_plus": composites.epsilon_plus,
    "epsilon_plus_flat": composites.epsilon_plus_flat,
    "alpha_beta": composites.alpha_beta,
    "gamma": composites.gamma,
    "box": lambda: composites.epsilon_gamma_box(-4.0, 4.0),
    "gradient": composites.gradient,
}


def test_relevance_is_near_that_of_float64_and_the_output_the_same():
    model, x = network(), torch.randn(X)
    exact = Explainer(copy.deepcopy(model).double()).forward(x.double(), lrp_aware="sweep")
    full = Explainer(model, precision="float32", paths="dense").forward(x, lrp_aware="sweep")
    paths = {"2": "sparse", "12": "sparse", "*": "dense"}
    narrow = Explainer(model, precision="bf16", paths=paths).forward(x, lrp_aware="sweep")
    assert torch.equal(narrow.output, full.output)
    for name, composite in COMPOSITES.items():
        expected = exact.under(composite()).relevance(range(6))
        relevance = narrow.under(composite()).relevance(range(6))
        assert relevance.dtype == torch.float32
        assert relative_error(relevance, expected) <= 1.5e-2, name  # Worst seen 7e-3, alpha-beta.
        assert relative_error(full.under(composite()).relevance(range(6)), expected) <= 1e-5, name


def test_a_transformer_down_and_up():
    model, x = Block().eval(), torch.randn(2, 7, 16)
    expected = Explainer(copy.deepcopy(model).double(), "attnlrp")(x.double(), range(5), groups="tokens")
    explainer = Explainer(model, "attnlrp", precision="bf16")
    for direction in ("down", "up"):
        found = explainer(x, range(5), groups="tokens", direction=direction)
        assert relative_error(found, expected) <= 2e-2, direction
    assert "cpu+bf16" in str(explainer.plan) or "bf16" in str(explainer.plan)


def test_small_whole_numbers_lose_nothing():
    """Products of a few bits each are the same in both, so that what differs would be a wrong operand."""
    model = nn.Sequential(nn.Conv2d(2, 9, 3, padding=1, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 4)).eval()
    for p in model.parameters():
        p.data = torch.randint(-1, 2, p.shape).float()
    x = torch.randint(0, 3, (2, 2, 4, 4)).float()
    asked = {"composite": composites.gradient(), "paths": "dense"}
    full, narrow = (Explainer(model, precision=name, **asked)(x, range(4)) for name in ("float32", "bf16"))
    assert torch.equal(full, narrow)
    assert full.any()


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_float32_is_the_default_and_unchanged(backend):
    model, x = network(), torch.randn(X)
    plain = Explainer(model, backend=backend)
    asked = Explainer(model, backend=backend, precision="float32")
    assert torch.equal(plain(x, range(6)), asked(x, range(6)))
    assert str(plain.plan) == str(asked.plan)
    assert not plain.plan.products.reduced
    assert asked.plan.products == precision.FULL
    assert "bf16" not in str(plain.plan)


def test_registers_stay_bfloat16_from_layer_to_layer(monkeypatch):
    seen: list[torch.dtype] = []
    scaled = reduced.scaled

    def looking(relevance: Tensor, coefficient: Tensor) -> Tensor:
        seen.append(relevance.dtype)
        assert coefficient.dtype == torch.float32
        return scaled(relevance, coefficient)

    monkeypatch.setattr(reduced, "scaled", looking)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(72, 4),
    ).eval()  # fmt: skip
    Explainer(model, precision="bf16", paths="dense")(torch.randn(1, 3, 16, 16), range(4))
    assert seen == [torch.float32, torch.bfloat16, torch.bfloat16], "the rows of the last layer are in float32"


class Convolutions(TorchDispatchMode):
    """The dtypes of the convolutions that are made."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: list[torch.dtype] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "convolution" in str(func):
            self.dtypes.append(args[0].dtype)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("composite", "expected"),
    [
        (composites.epsilon, []),
        (composites.epsilon_plus, [torch.bfloat16] * 2),
        (composites.gamma, [torch.bfloat16] * 2),
    ],
)
def test_denominators_are_reduced_and_for_epsilon_not_computed(composite, expected):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten()).eval()
    explainer, x = Explainer(model, composite(), precision="bf16"), torch.rand(1, 3, 8, 8)
    explainer(x, [0])
    with Convolutions() as seen, explainer.forward(x):
        pass
    dtypes = seen.dtypes
    for _ in range(2):
        dtypes.remove(torch.float32)  # The model's own.
    both_signs = composite is not composites.epsilon  # Of the first layer's input: two products, or one of both parts.
    assert set(dtypes) == set(expected)
    assert len(dtypes) <= len(expected) + 2 * both_signs


def test_pytorchs_switches_decide_where_nothing_else_does(switches):
    model, x = network(), torch.randn(X)
    explainer = Explainer(model, paths="dense")
    full = explainer(x, range(6))
    torch.backends.mkldnn.conv.fp32_precision = "bf16"
    assert relative_error(explainer(x, range(6)), full) > 1e-4
    assert (explainer.plan.products.convolutions, explainer.plan.products.matrices) == (True, False)
    assert "products: bf16 as torch.backends.mkldnn" in str(explainer.plan)
    torch.backends.mkldnn.conv.fp32_precision = "none"
    torch.set_float32_matmul_precision("medium")
    explainer(x, range(6))
    assert (explainer.plan.products.convolutions, explainer.plan.products.matrices) == (False, True)
    torch.set_float32_matmul_precision("highest")
    assert torch.equal(explainer(x, range(6)), full)


def test_other_processors_say_why_not(monkeypatch, switches):
    monkeypatch.setattr(precision, "instruction_set", lambda: None)
    model, x = network(), torch.randn(X)
    torch.backends.mkldnn.conv.fp32_precision = "bf16"
    explainer = Explainer(model, example_inputs=x)
    assert not explainer.plan.products.reduced
    assert "products: float32 although torch.backends.mkldnn.{conv,matmul}.fp32_precision allow" in str(explainer.plan)
    with pytest.warns(UserWarning, match="bf16 as asked for, although this processor has neither AMX nor AVX512-BF16"):
        explainer = Explainer(model, example_inputs=x, precision="bf16")
    assert explainer.plan.products.reduced


def test_where_there_is_no_such_path():
    with pytest.raises(ValueError, match="precision must be 'auto', 'float32' or 'bf16', got 'half'"):
        Explainer(network(), precision="half")
    x, model = torch.randn(1, 4), nn.Sequential(nn.Linear(4, 2))
    with pytest.raises(ValueError, match="precision='bf16' has no products on the backend 'reference'"):
        Explainer(model, precision="bf16", backend="reference", example_inputs=x)
    for dtype in (torch.float64, torch.float16):
        with pytest.raises(ValueError, match=f"is for models of float32 and bfloat16, and this one is of {dtype}"):
            Explainer(model.to(dtype), precision="bf16", example_inputs=x.to(dtype))
    with pytest.raises(ValueError, match="is for processors, and the model is on cuda"):
        precision.products_of("bf16", "auto", torch.device("cuda"), torch.float32)
    assert precision.products_of("auto", "auto", torch.device("cuda"), torch.float32) == precision.FULL


def test_the_plan_and_one_call_say_what_was_taken():
    x = torch.randn(X)
    model = network()
    paths = {"0": "sparse", "*": "dense"}
    explainer = Explainer(model, precision="bf16", paths=paths)
    relevance = explainer(x, range(6))
    lines = str(explainer.plan).splitlines()
    assert sum("cpu+bf16" in line and "dense bf16" in line for line in lines) == 2  # 2 and 8.
    assert "cpu+bf16" in lines[-4]
    assert "sparse" in lines[-4]
    strided = next(line for line in lines if line.startswith("5 "))
    assert "bf16" not in strided, "oneDNN lacks the kernel"
    assert "bf16" not in next(line for line in lines if line.startswith("12 ")), "a small share of the work"
    assert "products: bf16 as asked for, by AMX" in lines
    assert torch.equal(fastlrp.explain(model, x, range(6), precision="bf16", paths=paths), relevance)
    again = copy.deepcopy(explainer)
    assert torch.equal(again(x, range(6)), relevance)


def test_a_sample_alone_gives_what_it_gives_in_a_batch():
    model, x = network(), torch.randn(X)
    explainer = Explainer(model, precision="bf16", paths="dense")
    together = explainer(x, range(6))
    for i in range(2):
        assert relative_error(explainer(x[i : i + 1], range(6)), together[i : i + 1]) <= 1e-2


def test_a_model_of_bfloat16_takes_the_same_path():
    model = network()
    x = torch.randn(X)
    expected = Explainer(copy.deepcopy(model).double())(x.double(), range(6))
    narrow = Explainer(model.bfloat16())
    relevance = narrow(x.bfloat16(), range(6))
    assert relevance.dtype == torch.bfloat16
    assert narrow.plan.products.reduced
    assert relative_error(relevance, expected) <= 0.1


def test_verify_knows_what_bfloat16_loses():
    model, x = network(), torch.randn(X)
    found = Explainer(model, "alpha_beta", precision="bf16").verify(x, [0, 3])
    assert found.ok, str(found)
    assert found.max_error > 1e-4
