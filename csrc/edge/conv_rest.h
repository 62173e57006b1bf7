#pragma once

#include <utility>
#include <vector>

#include "tensors.h"

namespace fastlrp::edge {

// part - whole, (N, Co, H', W'), as the sums of x (N, Ci, H, W) through `weight` (Co, Ci, h, w) and `bias` that it is
// but for rounding; made again as plain sums where `whole`, or `divided`, is more than `most` times as large
// (cpu/conv_rest.h). For each sample whether that was done: where too many are to be made again its result means
// nothing. `divided`: what is divided by the result, as large; None where that is `whole`.
std::pair<Tensor, std::vector<bool>> conv_rest(const Tensor& whole, const Tensor& part, const Tensor& x,
                                               const Tensor& weight, const OptionalTensor& bias,
                                               const OptionalTensor& divided, const Sizes& stride, const Sizes& padding,
                                               const Sizes& dilation, double most);

}  // namespace fastlrp::edge
