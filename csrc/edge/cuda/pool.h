#pragma once

#include <optional>
#include <vector>

#include "../tensors.h"

// The functions of edge/pool.h for tensors on a GPU, in four dtypes. Results are the same each time.

namespace fastlrp::edge::cuda {

// Relevance whose index is outside the flattened input_size is dropped: the CPU's function raises an error, but here
// that would have to wait for the device. The public function's index comes from max_pool, which makes none.
at::Tensor pool_max_relevance(const at::Tensor& relevance, const at::Tensor& index, const OptionalTensor& scale,
                              const std::vector<int64_t>& input_size);

at::Tensor pool_ties_relevance(const at::Tensor& relevance, const at::Tensor& input, const at::Tensor& output,
                               const OptionalTensor& scale, const std::vector<int64_t>& kernel_size,
                               const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                               const std::vector<int64_t>& dilation);

at::Tensor pool_avg_relevance(const at::Tensor& relevance, const OptionalTensor& scale,
                              const std::vector<int64_t>& input_size, const std::vector<int64_t>& kernel_size,
                              const std::vector<int64_t>& stride, const std::vector<int64_t>& padding, bool ceil_mode,
                              bool count_include_pad, std::optional<int64_t> divisor_override);

at::Tensor pool_adaptive_avg_relevance(const at::Tensor& relevance, const OptionalTensor& scale,
                                       const std::vector<int64_t>& input_size);

}  // namespace fastlrp::edge::cuda
