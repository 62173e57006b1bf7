#pragma once

#include "tensors.h"

namespace fastlrp::edge {

// Weights (Co, Ci, 3, 3) as winograd_convolution reads them, (36, Co, Ci) in an order of its own; `turned`: those of
// the transpose of a convolution (Ci, Co, 3, 3).
Tensor winograd_pack(const Tensor& weight, bool turned);

// (N, Co, H', W'), channels-last: x (N, Ci, H, W), times `scale` (N / K, Ci, H, W) if there is one, through a 3x3
// convolution with strides of 1 and `padding` zeros at each side; not below zero, nor below `least`, where asked for.
// `alike`: places of a sample that read the same numbers give the same, bit for bit; not with `scale` or `least`.
// `second`: as `scale`; then the weight is for 2 Ci channels, x times `scale` and behind it x times `second`.
Tensor winograd_convolution(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                            const OptionalTensor& scale, const OptionalTensor& least, const Sizes& padding,
                            bool not_negative, bool alike, const OptionalTensor& second = {});

}  // namespace fastlrp::edge
