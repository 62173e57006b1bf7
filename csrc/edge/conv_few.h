#pragma once

#include "tensors.h"

namespace fastlrp::edge {

// W^T (scale x), (N, Co, H', W') to (N, C, *size), of a convolution with few input channels and without dilation.
// `weight` (Co, C, h, w), Co in multiples of 16; `scale` (N / K, Co, H', W'), each for K of x. `narrow`: by products of
// bfloat16, which x may then be of, too; sums are float32.
Tensor conv_few_transposed(const Tensor& x, const OptionalTensor& scale, const Tensor& weight, const Sizes& size,
                           const Sizes& stride, const Sizes& padding, bool narrow);

}  // namespace fastlrp::edge
