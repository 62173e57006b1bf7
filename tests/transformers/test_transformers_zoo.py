"""Every family of :mod:`tests.transformers.zoo`, unmodified, under AttnLRP and the other composites."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from fastlrp import Explainer
from tests.transformers import zoo, zoo_checks, zoo_family

pytestmark = pytest.mark.usefixtures("captured_once")
COMMON = (
    "bert", "gpt2", "llama", "qwen3_moe", "t5", "vit", "clip", "detr", "tv_swin_t", "timm_deit", "nn_decoder_seq",
    "mha_all",
)  # fmt: skip
"""The families of the daily loop; all others have the marker ``slow``."""
LIKE_ANOTHER = (
    "electra", "roberta", "distilbert", "bert_eager", "vit_eager", "llama_eager", "llama3_rope", "qwen2", "qwen3",
    "gemma3", "mixtral", "opt", "bart", "deit", "timm_beit", "timm_vit", "tv_vit_b_16", "timm_swin", "swinv2",
    "tv_maxvit_t", "siglip_image", "clip_image", "wav2vec2_ctc", "nn_transformer", "nn_decoder", "nn_encoder_seq",
    "tv_swin3d_t", "swin", "clip_text", "timm_coatnet", "t5_encoder", "dinov2", "nn_transformer_seq", "mha_bias_kv",
    "mha_zero", "mha_mask",
)  # fmt: skip
"""Families of parts that others have too, in a full run only: BERT's, Llama's, ViT's relatives, and eager ones."""
APART = ("gpt2", "llama", "deberta_v2", "timm_levit", "tv_mvit_v2_s", "gpt_oss", "patchtsmixer")
"""Beside the common ones, those with operations of their own."""
CAUSAL = (
    "gpt_neox", "opt", "llama3_rope", "mistral", "qwen2", "qwen3", "gemma3", "phi3", "mixtral", "qwen3_moe",
)  # fmt: skip
ENCODERS = ("bert", "roberta", "distilbert", "albert", "electra", "deberta_v2")
IDS = (*ENCODERS, "gpt2", "llama", *CAUSAL, "t5_encoder")
EAGER_TOO = (
    "bert", "roberta", "distilbert", "albert", "electra", "gpt2", "gpt_neox", "opt", "llama", "mistral", "qwen3",
    "bart", "whisper", "wav2vec2", "vit", "deit", "dinov2", "beit", "clip", "siglip",
)  # fmt: skip


def families(*quick: str, every: Any, of: Any = zoo.ALL) -> list[Any]:
    """All names, those that are not quick marked slow, and those that are not for every run marked full."""
    marks = {name: [pytest.mark.slow] * (name not in quick) + [pytest.mark.full] * (name not in every) for name in of}
    return [pytest.param(name, marks=marks[name]) for name in of]


def explained(name: str, composite: str) -> tuple[Explainer, Any, zoo_family.Family]:
    model, x = zoo.built(name)
    family = zoo.ALL[name]
    return Explainer(model, composite, output=family.output), x, family


@pytest.mark.parametrize("name", families(*COMMON, every={*zoo.ALL} - {*LIKE_ANOTHER}))
def test_attnlrp(name: str) -> None:
    """Equal to autograd with the fixed parts detached and to the textbook; targets and samples do not mix."""
    explainer, x, family = explained(name, "attnlrp")
    zoo_checks.equals_oracle(explainer, x, family, "attnlrp")
    zoo_checks.is_verified(explainer, x, family)
    zoo_checks.targets_and_samples_are_apart(explainer, x, family)


@pytest.mark.parametrize("name", families("bert", "llama", "vit", "qwen3_moe", every=COMMON + APART))
def test_cp_lrp(name: str) -> None:
    explainer, x, family = explained(name, "cp_lrp")
    zoo_checks.is_verified(explainer, x, family)
    zoo_checks.equals_oracle(explainer, x, family, "cp_lrp")


@pytest.mark.parametrize("name", families("bert", "qwen3_moe", "detr", "tv_swin_t", every=COMMON + APART))
def test_gradient(name: str) -> None:
    explainer, x, family = explained(name, "gradient")
    zoo_checks.gradient_is_autograd(explainer, x, family)


@pytest.mark.parametrize("name", families("gpt2", "vit", every=COMMON + APART))
def test_epsilon_plus(name: str) -> None:
    zoo_checks.is_verified(*explained(name, "epsilon_plus"))


@pytest.mark.parametrize(
    "name", families("bert", every=("bert", "deberta_v2", "gpt2", "mistral"), of=(*ENCODERS, "gpt2", *CAUSAL))
)
def test_padding_on_the_right_changes_nothing(name: str) -> None:
    family, (model, _) = zoo.ALL[name], zoo.built(name)
    output = family.output if name in ENCODERS else zoo_family.fifth
    zoo_checks.padding_changes_nothing(model, family, False, output)


@pytest.mark.parametrize("name", families("llama", every=("llama", "mistral", "gpt_neox"), of=("llama", *CAUSAL)))
def test_padding_on_the_left_changes_nothing(name: str) -> None:
    """Of models whose positions are relative, or counted from the mask."""
    family, (model, _) = zoo.ALL[name], zoo.built(name)
    zoo_checks.padding_changes_nothing(model, family, True, family.output)


@pytest.mark.parametrize("name", families("llama", every=("bert", "albert", "gpt2", "llama", "t5_encoder"), of=IDS))
def test_ids_and_their_rows_agree(name: str) -> None:
    if name == "roberta":
        pytest.skip("RoBERTa reads padding from ids and has other positions without them")
    model, x = zoo.built(name)
    zoo_checks.rows_give_what_ids_give(model, x, zoo.ALL[name])


@pytest.mark.parametrize(
    "name", families("bert", every=("bert", "gpt2", "llama", "beit", "wav2vec2", "clip"), of=EAGER_TOO)
)
def test_eager_and_fused_attention_agree(name: str) -> None:
    if name == "bart" and zoo.library("transformers").__version__ < "5":
        pytest.skip("torch.export does not take BART's decoder with eager attention before transformers 5")
    zoo_checks.implementations_agree(name)


@pytest.mark.slow
def test_experts_by_batched_products_agree() -> None:
    explainer, x, family = explained("mixtral", "attnlrp")
    grouped = zoo_checks.named(explainer(x, [1]))
    other = copy.deepcopy(explainer.model)
    other.set_experts_implementation("batched_mm")
    batched = zoo_checks.named(Explainer(other, "attnlrp", output=family.output)(x, [1]))
    zoo_checks.equal(batched, grouped, 1e-7)  # Measured: 1.4e-8.
