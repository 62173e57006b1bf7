#pragma once

#include "tensors.h"

namespace fastlrp::edge {

// W^T (scale x), (N, C, H', W') to (N, C, *size), of a depthwise convolution. `weight` (C, 1, h, w), C at least 16;
// `scale` (N / K, C, H', W'), each for K of x. With `sign` (N / K, C, *size) it is W+^T (scale x) where that is above
// zero, W-^T (scale x) below, and 0 where it is zero; `positive`: W+, which need not be that.
Tensor conv_depth_transposed(const Tensor& x, const OptionalTensor& scale, const Tensor& weight,
                             const OptionalTensor& positive, const OptionalTensor& sign, const Sizes& size,
                             const Sizes& stride, const Sizes& padding, const Sizes& dilation);

}  // namespace fastlrp::edge
