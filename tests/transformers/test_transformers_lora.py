"""Low-rank adapters: merged and beside the layer give the same; by hand, and peft's where it is installed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastlrp import Explainer
from tests.transformers import zoo
from tests.transformers.oracle import transformer


class Adapted(nn.Module):
    """``W x + scale B A x`` as adapters are written: ``W`` frozen, A and B of rank 2."""

    def __init__(self, layer: nn.Linear, scale: float) -> None:
        super().__init__()
        self.layer, self.scale = layer, scale
        self.down = nn.Linear(layer.in_features, 2, bias=False, dtype=torch.float64)
        self.up = nn.Linear(2, layer.out_features, bias=False, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.up(self.down(x)) * self.scale

    def merged(self) -> nn.Linear:
        found = copy.deepcopy(self.layer)
        found.weight.data += self.scale * self.up.weight.data @ self.down.weight.data
        return found


@pytest.mark.each_value
@pytest.mark.parametrize("trained", [True, False], ids=["trained", "new"])
@pytest.mark.parametrize("composite", ["attnlrp", "cp_lrp"])
def test_beside_the_layer_and_merged(composite: str, trained: bool) -> None:
    """A new adapter is zero: its ``B x`` is exactly 0."""
    model = transformer(True, False, True)
    torch.manual_seed(2)
    for block in model.blocks:
        block.q, block.v = Adapted(block.q, 1.5), Adapted(block.v, 1.5)
        for adapted in (block.q, block.v):
            adapted.up.weight.data.mul_(float(trained))
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    explainer = Explainer(model, composite)
    found = explainer(x, [0, 3])
    assert explainer.verify(x, [0, 3]).ok
    merged = copy.deepcopy(model)
    for block in merged.blocks:
        block.q, block.v = block.q.merged(), block.v.merged()
    torch.testing.assert_close(found, Explainer(merged, composite)(x, [0, 3]), rtol=1e-11, atol=1e-14)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "layers"), [("gpt2", ("c_attn", "c_fc")), ("llama", ("q_proj", "v_proj"))])
def test_adapters_of_peft(name: str, layers: tuple[str, ...]) -> None:
    zoo.library("transformers")
    peft: Any = pytest.importorskip("peft", reason="peft is not installed")
    model, x = zoo.build(name)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=list(layers), fan_in_fan_out=name == "gpt2")
    adapted = peft.get_peft_model(model, config).double().eval()
    torch.manual_seed(0)
    for key, parameter in adapted.named_parameters():
        if "lora_" in key:
            nn.init.normal_(parameter, 0, 0.2)
    output, tolerance = zoo.ALL[name].output, zoo.ALL[name].tolerance
    explainer = Explainer(adapted, "attnlrp", output=output)
    found = explainer(x, [1, 2])["input_ids"]
    assert explainer.verify(x, [1, 2]).ok
    merged = Explainer(adapted.merge_and_unload(), "attnlrp", output=output)(x, [1, 2])["input_ids"]
    assert (found - merged).norm() <= tolerance * merged.norm()
