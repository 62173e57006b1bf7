"""The operations that backends compute, each with the stem of the files that hold it."""

from __future__ import annotations

STEMS = {
    "linear_relevance": "linear",
    "linear_one_hot_relevance": "linear",
    "conv_relevance": "conv",
    "conv_unpooled_relevance": "conv",
    "input_relevance": "input_rules",
    "input_flat_relevance": "input_rules",
    "pool_max_relevance": "pool",
    "pool_ties_relevance": "pool",
    "pool_avg_relevance": "pool",
    "pool_adaptive_avg_relevance": "pool",
    "elementwise_coefficients": "elementwise",
    "elementwise_pooled_coefficients": "elementwise",
    "attention_forward": "attention",
    "attention_relevance": "attention",
    "attention_value_relevance": "attention",
    "attention_up": "attention",
    "norm_relevance": "norm",
    "recurrence_relevance": "recurrence",
}

OPS = tuple(STEMS)
