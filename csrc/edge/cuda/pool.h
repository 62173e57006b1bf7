#pragma once

#include <optional>
#include <vector>

#include "../tensors.h"

// The functions of edge/pool.h for tensors on a GPU, in four dtypes. Results are the same each time.

namespace fastlrp::edge::cuda {

// Relevance whose index is outside the flattened input_size is dropped: the CPU's function raises an error, but here
// that would have to wait for the device. The public function's index comes from max_pool, which makes none.
Tensor pool_max_relevance(const Tensor& relevance, const Tensor& index, const OptionalTensor& scale,
                          const std::vector<int64_t>& input_size);

Tensor pool_ties_relevance(const Tensor& relevance, const Tensor& input, const Tensor& output,
                           const OptionalTensor& scale, const std::vector<int64_t>& kernel_size,
                           const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                           const std::vector<int64_t>& dilation);

Tensor pool_avg_relevance(const Tensor& relevance, const OptionalTensor& scale, const std::vector<int64_t>& input_size,
                          const std::vector<int64_t>& kernel_size, const std::vector<int64_t>& stride,
                          const std::vector<int64_t>& padding, bool ceil_mode, bool count_include_pad,
                          std::optional<int64_t> divisor_override);

Tensor pool_adaptive_avg_relevance(const Tensor& relevance, const OptionalTensor& scale,
                                   const std::vector<int64_t>& input_size);

}  // namespace fastlrp::edge::cuda
