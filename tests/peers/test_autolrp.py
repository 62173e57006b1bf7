"""autoLRP 0.2.0 beside ``attnlrp`` and ``cp_lrp``, once configured with their rules (``benchmarks/autolrp_rules.py``).

The installed package takes part, or the one in the folder that ``FASTLRP_AUTOLRP`` names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastlrp
from benchmarks import attention_peers, autolrp_rules
from benchmarks.attention_models import Workload
from benchmarks.measure import disagreement
from benchmarks.providers import UnavailableError
from tests import torchvision_models

TOLERANCE = 1e-6  # Measured: 4e-9; 1.2e-7 for Llama, whose norms compute in float32.
TARGETS = [1, 2, 5]  # Not 0: the row of a padding token in tied weights is zero.


@pytest.fixture(scope="module")
def library() -> Any:
    try:
        return attention_peers.library("autolrp", "FASTLRP_AUTOLRP")
    except UnavailableError as reason:
        pytest.skip(str(reason))


class Sum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.place = nn.Linear(6, 6), nn.Parameter(torch.randn(4, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.place
        return x + self.linear(x)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x, x, need_weights=False)[0]


class Causal(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, 1.5 * x, x.tanh(), is_causal=True)


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.signal = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.gate(x)) * self.signal(x)


class RootMeanSquare(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 0.1)


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def _randomised(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        if parameter.dim() == 1 or not bool(parameter.any()):
            parameter.data = parameter.data + 0.2 * torch.randn_like(parameter)
    return model.double().eval()


class Flat(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).flatten(1)


MODULES: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(6, 6),
    "norm": lambda: nn.LayerNorm(6),
    "gelu": nn.GELU,
    "sum": Sum,
    "attention": Attention,
    "causal": Causal,
    "gate": Gate,
    "rms": RootMeanSquare,
    "mean": Mean,
}


def _error(library: Any, model: nn.Module, x: Tensor, composite: str, family: str) -> float:
    work = Workload(family, model, x, 6, composite, family)
    (part,) = attention_peers.autolrp(work, composite)
    theirs = part.run(x, torch.tensor([TARGETS]), lambda: None)
    given, more = ({"input_ids": x}, {"output": "logits", "at": -1}) if work.is_text else (x, {})
    ours: Any = fastlrp.explain(model, given, TARGETS, composite, **more)
    assert theirs is not None
    return disagreement(ours["input_ids"] if work.is_text else ours, theirs)


@pytest.mark.parametrize("name", MODULES)
def test_modules(library, name):
    model = _randomised(Flat(MODULES[name]()))
    assert _error(library, model, torch.randn(1, 4, 6, dtype=torch.float64), "attnlrp", name) < TOLERANCE


@pytest.mark.full
@pytest.mark.parametrize("composite", ["attnlrp", "cp_lrp"])
def test_vision_transformer(library, composite):
    models: Any = torchvision_models.import_models()
    model = models.VisionTransformer(16, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=7)
    x = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    assert _error(library, _randomised(model), x, composite, "vit") < TOLERANCE


@pytest.mark.full
def test_swin(library):
    models: Any = torchvision_models.import_models()
    model = models.SwinTransformer([2, 2], 8, depths=[1, 1], num_heads=[2, 2], window_size=[4, 4], num_classes=7)
    x = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    assert _error(library, _randomised(model), x, "attnlrp", "swin") < TOLERANCE


@pytest.mark.full
@pytest.mark.parametrize("family", ["GPT2", "Bert", "Llama"])
def test_language_models(library, family):
    torchvision_models.import_models()
    transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed")
    settings = getattr(transformers, f"{family}Config")(
        vocab_size=40, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=16, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    settings.use_cache = False
    head = {"GPT2": "GPT2LMHeadModel", "Bert": "BertForMaskedLM", "Llama": "LlamaForCausalLM"}[family]
    model = _randomised(getattr(transformers, head)(settings))
    ids = torch.randint(6, 40, (1, 9))
    assert _error(library, model, ids, "attnlrp", family) < TOLERANCE


def test_what_its_own_presets_do(library):
    """Its rule for sums shares by magnitude: 3 of 5 and 2 of 5 for 3 - 2 = 1, where here it is 3 and -2."""
    leaf = library.tensor(torch.tensor([[3.0, -2.0]], dtype=torch.float64))
    found = {}
    for name, rule in (("own", library.BASE), ("ours", {**library.BASE, "AddBackward": autolrp_rules.share_of_sum})):
        total = (leaf[:, :1] + leaf[:, 1:]).flatten()[0]
        total.lrp(config=library.LRPConfig(rule=rule))
        found[name] = leaf.relevance.as_subclass(Tensor)
    torch.testing.assert_close(found["own"], torch.tensor([[0.6, 0.4]], dtype=torch.float64))
    torch.testing.assert_close(found["ours"], torch.tensor([[3.0, -2.0]], dtype=torch.float64))


def test_rewrites_are_undone(library):
    before = dict(library.REWRITES)
    with autolrp_rules.written_out(library):
        assert before != library.REWRITES
    assert before == library.REWRITES


def test_other_composites(library):
    with pytest.raises(ValueError, match="attnlrp and cp_lrp alone, not like 'gamma'"):
        autolrp_rules.configuration(library, "gamma")
