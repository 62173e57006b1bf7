#pragma once

#include <optional>
#include <string>
#include <tuple>

#include "tensors.h"

namespace fastlrp::edge {

// Those of a layer's output neurons, in z's order of elements; none where the rule makes none.
struct CoefficientTensors {
  OptionalTensor u, v;

  auto tuple() const { return std::tuple{u, v}; }
};

using ElementwiseCoefficients = CoefficientTensors(const Tensor& z, const OptionalTensor& positive,
                                                   const OptionalTensor& negative, const OptionalTensor& factor,
                                                   const std::string& rule, double alpha, double epsilon);

ElementwiseCoefficients elementwise_coefficients;  // on a CPU, in two dtypes

namespace cuda {
ElementwiseCoefficients elementwise_coefficients;  // on a GPU, in four
}

// relevance (B, K, *S) in float32 or bfloat16 times coefficient (B, *S) in float32, rounded to bfloat16 in the same
// pass. The result lies in memory as the coefficient does.
Tensor elementwise_scaled(const Tensor& relevance, const Tensor& coefficient);

// The ReLU y of a sum of two tensors of the same shape and strides, and y / (y + epsilon); of no epsilon y alone.
std::tuple<Tensor, OptionalTensor> elementwise_rectified_sum(const Tensor& first, const Tensor& second,
                                                             std::optional<double> epsilon);

}  // namespace fastlrp::edge
