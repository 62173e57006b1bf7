"""Layer operations without state: each validates its arguments, states its formula and calls ``torch.ops.fastlrp``."""

from fastlrp.functional.attention import (
    attention_forward,
    attention_relevance,
    attention_up,
    attention_value_relevance,
)
from fastlrp.functional.conv import conv_relevance, conv_unpooled_relevance
from fastlrp.functional.elementwise import elementwise_coefficients, elementwise_pooled_coefficients
from fastlrp.functional.input_rules import input_flat_relevance, input_relevance
from fastlrp.functional.linear import linear_one_hot_relevance, linear_relevance
from fastlrp.functional.norm import norm_relevance
from fastlrp.functional.pool import (
    pool_adaptive_avg_relevance,
    pool_avg_relevance,
    pool_max_relevance,
    pool_ties_relevance,
)
from fastlrp.functional.recurrence import recurrence_relevance

__all__ = [
    "attention_forward",
    "attention_relevance",
    "attention_up",
    "attention_value_relevance",
    "conv_relevance",
    "conv_unpooled_relevance",
    "elementwise_coefficients",
    "elementwise_pooled_coefficients",
    "input_flat_relevance",
    "input_relevance",
    "linear_one_hot_relevance",
    "linear_relevance",
    "norm_relevance",
    "pool_adaptive_avg_relevance",
    "pool_avg_relevance",
    "pool_max_relevance",
    "pool_ties_relevance",
    "recurrence_relevance",
]
