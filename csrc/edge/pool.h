#pragma once

#include <vector>

#include "tensors.h"

namespace fastlrp::edge {

at::Tensor pool_max_relevance(const at::Tensor& relevance, const at::Tensor& index, const OptionalTensor& scale,
                              const std::vector<int64_t>& input_size);

at::Tensor pool_ties_relevance(const at::Tensor& relevance, const at::Tensor& input, const at::Tensor& output,
                               const OptionalTensor& scale, const std::vector<int64_t>& kernel_size,
                               const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                               const std::vector<int64_t>& dilation);

// ceil_mode is not read: the size of the relevance tells.
at::Tensor pool_avg_relevance(const at::Tensor& relevance, const OptionalTensor& scale,
                              const std::vector<int64_t>& input_size, const std::vector<int64_t>& kernel_size,
                              const std::vector<int64_t>& stride, const std::vector<int64_t>& padding, bool ceil_mode,
                              bool count_include_pad, std::optional<int64_t> divisor_override);

// As in the torch backend: one window over all is a view, expanded; a map of the same size shares memory where there
// is no scale.
at::Tensor pool_adaptive_avg_relevance(const at::Tensor& relevance, const OptionalTensor& scale,
                                       const std::vector<int64_t>& input_size);

}  // namespace fastlrp::edge
