#pragma once

#include <string>
#include <tuple>

#include "../elementwise.h"

// What only a GPU has beside edge/elementwise.h, in four dtypes.

namespace fastlrp::edge::cuda {

struct PooledTensors {
  Tensor pooled, index;  // (B, C, *S')
  OptionalTensor u, v;   // (B, C, *S)

  auto tuple() const { return std::tuple{pooled, index, u, v}; }
};

// z (B, C, *S) -> max_pool(relu(z)) and its winners, and the coefficients with the factor relu(z).
PooledTensors elementwise_pooled_coefficients(const Tensor& z, const OptionalTensor& positive,
                                              const OptionalTensor& negative, const std::string& rule, double alpha,
                                              double epsilon, const Sizes& kernel_size, const Sizes& stride,
                                              const Sizes& padding, const Sizes& dilation, bool ceil_mode);

}  // namespace fastlrp::edge::cuda
