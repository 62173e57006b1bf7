#pragma once

#include <string>
#include <tuple>
#include <vector>

#include "../tensors.h"

// The functions of edge/elementwise.h for tensors on a GPU, in four dtypes.

namespace fastlrp::edge::cuda {

std::tuple<OptionalTensor, OptionalTensor> elementwise_coefficients(const at::Tensor& z, const OptionalTensor& positive,
                                                                    const OptionalTensor& negative,
                                                                    const OptionalTensor& factor,
                                                                    const std::string& rule, double alpha,
                                                                    double epsilon);

// z (B, C, *S) -> max_pool(relu(z)) and its winners (B, C, *S'), and the coefficients with the factor relu(z).
std::tuple<at::Tensor, at::Tensor, OptionalTensor, OptionalTensor> elementwise_pooled_coefficients(
    const at::Tensor& z, const OptionalTensor& positive, const OptionalTensor& negative, const std::string& rule,
    double alpha, double epsilon, const std::vector<int64_t>& kernel_size, const std::vector<int64_t>& stride,
    const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation, bool ceil_mode);

}  // namespace fastlrp::edge::cuda
