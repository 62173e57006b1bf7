#pragma once

#include <vector>

#include "tensors.h"

namespace fastlrp::edge {

at::Tensor pool_max_relevance(const at::Tensor& relevance, const at::Tensor& index, const OptionalTensor& scale,
                              const std::vector<int64_t>& input_size);

}  // namespace fastlrp::edge
