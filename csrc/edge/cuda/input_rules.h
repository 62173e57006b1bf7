#pragma once

#include <optional>
#include <vector>

#include "../tensors.h"

// Relevance of a network's input on a GPU, in four dtypes; see fastlrp.functional. Results are the same each time, and
// lie in memory with their channels innermost.

namespace fastlrp::edge::cuda {

// What the kernel is not for (groups, many input channels, very large windows) is composed of PyTorch's operations.
Tensor input_relevance(const Tensor& relevance, const std::vector<Tensor>& weights,
                       const std::vector<Tensor>& coefficients, const std::vector<OptionalTensor>& multipliers,
                       const Sizes& input_size, const Sizes& stride, const Sizes& padding, const Sizes& dilation,
                       int64_t groups, bool reduce);

Tensor input_flat_relevance(const Tensor& relevance, const Tensor& u, int64_t channels, const Sizes& kernel_size,
                            const Sizes& input_size, const Sizes& stride, const Sizes& padding, const Sizes& dilation,
                            bool reduce);

}  // namespace fastlrp::edge::cuda
