#pragma once

#include "tensors.h"

namespace fastlrp::edge {

// (B, K, *L, N) from relevance of that size, a gain that broadcasts to (B, *L, N), and 1 / sigma (B, *L, 1).
Tensor norm_relevance(const Tensor& relevance, const OptionalTensor& gain, const Tensor& inverse_sigma, bool centre);

}  // namespace fastlrp::edge
