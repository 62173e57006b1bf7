#pragma once

#include <vector>

#include "tensors.h"

namespace fastlrp::edge {

Tensor pool_max_relevance(const Tensor& relevance, const Tensor& index, const OptionalTensor& scale,
                          const std::vector<int64_t>& input_size);

Tensor pool_ties_relevance(const Tensor& relevance, const Tensor& input, const Tensor& output,
                           const OptionalTensor& scale, const std::vector<int64_t>& kernel_size,
                           const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                           const std::vector<int64_t>& dilation);

// ceil_mode is not read: the size of the relevance tells.
Tensor pool_avg_relevance(const Tensor& relevance, const OptionalTensor& scale, const std::vector<int64_t>& input_size,
                          const std::vector<int64_t>& kernel_size, const std::vector<int64_t>& stride,
                          const std::vector<int64_t>& padding, bool ceil_mode, bool count_include_pad,
                          std::optional<int64_t> divisor_override);

// As in the torch backend: one window over all is a view, expanded; a map of the same size shares memory where there
// is no scale.
Tensor pool_adaptive_avg_relevance(const Tensor& relevance, const OptionalTensor& scale,
                                   const std::vector<int64_t>& input_size);

}  // namespace fastlrp::edge
