#pragma once

#include <tuple>
#include <vector>

#include "tensors.h"

namespace fastlrp::edge {

// alpha factor / (part + epsilon) and beta factor / (part - whole + epsilon), (N, Co, H', W'). The difference is what
// x (N, Ci, H, W) gives through `weight` (Co, Ci, h, w) and `bias` but for rounding, and is made again as a plain sum
// where `whole`, or `factor`, is more than `most` times as large (cpu/conv_rest.h). For each sample whether that was
// done: where too many are to be made again its second result means nothing. `factor`: as large; None for 1.
std::tuple<Tensor, Tensor, std::vector<bool>> conv_rest(const Tensor& whole, const Tensor& part, const Tensor& x,
                                                        const Tensor& weight, const OptionalTensor& bias,
                                                        const OptionalTensor& factor, const Sizes& stride,
                                                        const Sizes& padding, const Sizes& dilation, double most,
                                                        double alpha, double beta, double epsilon);

// factor / (part - (shift - whole) + epsilon) of sums that are `part`, (1, Co, H', W'), where x is zero: the difference
// is made again in the same way, and the flags mean the same. `shift`: (Co), what `whole` has beside a sum; None for 0.
std::tuple<Tensor, std::vector<bool>> conv_rest_of_box(const Tensor& whole, const Tensor& part, const Tensor& x,
                                                       const Tensor& weight, const OptionalTensor& shift,
                                                       const OptionalTensor& factor, const Sizes& stride,
                                                       const Sizes& padding, const Sizes& dilation, double most,
                                                       double epsilon);

}  // namespace fastlrp::edge
