"""Layer operations without state: each validates its arguments, states its formula and calls ``torch.ops.fastlrp``."""

from fastlrp.functional.conv import conv_relevance
from fastlrp.functional.elementwise import elementwise_coefficients
from fastlrp.functional.linear import linear_one_hot_relevance, linear_relevance
from fastlrp.functional.pool import (
    pool_adaptive_avg_relevance,
    pool_avg_relevance,
    pool_max_relevance,
    pool_ties_relevance,
)

__all__ = [
    "conv_relevance",
    "elementwise_coefficients",
    "linear_one_hot_relevance",
    "linear_relevance",
    "pool_adaptive_avg_relevance",
    "pool_avg_relevance",
    "pool_max_relevance",
    "pool_ties_relevance",
]
