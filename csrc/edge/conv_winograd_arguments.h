// The arguments that products by Winograd's filtering and looks at their operands share, checked.
#pragma once

#include "tensors.h"

namespace fastlrp::edge {

// Rows and columns of what a 3x3 convolution with strides of 1 makes of x (N, Ci, H, W), with zeros at each side.
Sizes winograd_size(const Check& check, const Tensor& x, const Sizes& padding);

// Refuses a scale that is not (N / K, Ci, H, W) for x (N, Ci, H, W).
void winograd_check_scale(const Check& check, const Tensor& scale, const Tensor& x);

}  // namespace fastlrp::edge
