"""State-space and linear-attention families of ``transformers``, alone or beside attention: small configurations."""

from __future__ import annotations

from typing import Any

_COMMON = {
    "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "intermediate_size": 24, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_MAMBA2 = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 4, "mamba_chunk_size": 4}
_EXPERTS = {"experts_implementation": "batched_mm"}  # PyTorch's grouped product, the default, takes no float64.

CONFIGURATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "FalconMamba": ("FalconMamba", {"state_size": 4, "time_step_rank": 4}),
    "Bamba": ("Bamba", {**_MAMBA2, "attn_layer_indices": [1]}),
    "Zamba2": ("Zamba2", {"num_hidden_layers": 3, "layers_block_type": ["mamba", "hybrid", "mamba"],
                          "mamba_d_state": 4, "n_mamba_heads": 4, "mamba_headdim": 8, "mamba_ngroups": 1,
                          "chunk_size": 4, "num_key_value_heads": 2, "use_mem_rope": True, "adapter_rank": 4,
                          "num_mem_blocks": 1, "attention_head_dim": 16, "attention_hidden_size": 32}),
    "FalconH1": ("FalconH1", {**_MAMBA2, "mamba_d_ssm": 32}),
    "GraniteMoeHybrid": ("GraniteMoeHybrid", {**_MAMBA2, "layer_types": ["mamba", "attention"], "mamba_expand": 2,
                                              "num_local_experts": 0, "shared_intermediate_size": 24}),
    "Nemotron-H": ("NemotronH", {"hybrid_override_pattern": "M*-", "num_hidden_layers": 3, "mamba_num_heads": 4,
                                 "mamba_head_dim": 8, "n_groups": 1, "ssm_state_size": 4, "chunk_size": 4,
                                 "head_dim": 8}),
    "Jamba": ("Jamba", {**_EXPERTS, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
                        "expert_layer_offset": 1, "num_experts": 4, "mamba_d_state": 4, "mamba_dt_rank": 4,
                        "use_mamba_kernels": False}),
    "RecurrentGemma": ("RecurrentGemma", {"lru_width": 16, "attention_window_size": 8,
                                          "block_types": ["recurrent", "attention"]}),
    "LFM2": ("Lfm2", {"layer_types": ["conv", "full_attention"], "block_ff_dim": 24}),
    "Qwen3-Next": ("Qwen3Next", {**_EXPERTS, "layer_types": ["linear_attention", "full_attention"], "head_dim": 8,
                                 "linear_num_key_heads": 1, "linear_num_value_heads": 2, "linear_key_head_dim": 8,
                                 "linear_value_head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2,
                                 "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8}),
    "OLMo-Hybrid": ("OlmoHybrid", {"layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2,
                                   "linear_num_value_heads": 2, "linear_key_head_dim": 8,
                                   "linear_value_head_dim": 8}),
    "Kimi-Linear": ("KimiLinear", {**_EXPERTS, "layer_types": ["linear_attention", "full_attention"],
                                   "mlp_layer_types": ["dense", "sparse"], "moe_intermediate_size": 8,
                                   "num_key_value_heads": 2, "kv_lora_rank": 8, "qk_rope_head_dim": 4,
                                   "qk_nope_head_dim": 8, "v_head_dim": 8, "num_experts_per_tok": 2,
                                   "num_local_experts": 4, "linear_head_dim": 8, "linear_num_heads": 2}),
    "xLSTM": ("xLSTM", {"num_heads": 2, "chunk_size": 4, "ffn_round_up_to_multiple_of": 8,
                        "autocast_kernel_dtype": "float32", "use_cache": False}),
    "MiniMax": ("MiniMax", {**_EXPERTS, "layer_types": ["linear_attention", "full_attention"], "head_dim": 8,
                            "block_size": 4, "num_local_experts": 2}),
}  # fmt: skip
"""The name of the architecture, and what its configuration has beside the sizes of all."""


def rows() -> dict[str, tuple[str, dict[str, Any]]]:
    """The class and the whole configuration of each family."""
    return {name: (f"{stem}ForCausalLM", {**_COMMON, **own}) for name, (stem, own) in CONFIGURATIONS.items()}
