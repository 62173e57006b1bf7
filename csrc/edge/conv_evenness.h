#pragma once

#include <vector>

#include "tensors.h"

namespace fastlrp::edge {

// For each sample of x (N, Ci, H, W), times `scale` (N / K, Ci, H, W) if there is one, whether it is even enough for
// winograd_convolution with this `padding`: no place of a tile holds more than `most` times what a window of it reads.
std::vector<bool> winograd_even(const Tensor& x, const OptionalTensor& scale, const Sizes& padding, double most);

// The same of y (N, Co, H', W'), which winograd_convolution has made of it and which is multiplied with `times`
// (N / K, Co, H', W') afterwards: whether what rounding makes of y is small beside the shares `y times` of each tile.
// `sizes` (Co): the largest weight of each output; most: how many times the sum of the sizes of a tile's shares what
// its fullest place holds may be, times the largest weight and factor.
std::vector<bool> winograd_tells(const Tensor& y, const Tensor& x, const Tensor& scale, const Tensor& times,
                                 const Tensor& sizes, const Sizes& padding, double most);

// Makes each of y (N, Co, H', W'), channels-last, again as a plain sum of which `divided`, as large as y, is more than
// `most` times in size: of x (N, Ci, H, W) through `weight` (Co, Ci, 3, 3) with `padding` zeros at each side, and
// `bias`. For each sample whether that was done; where too many are to be made again nothing is.
std::vector<bool> winograd_repair(const Tensor& y, const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                                  const Tensor& divided, const Sizes& padding, double most);

// For each sample whether few of its sums would be made again, by a choice of them: the arguments of winograd_repair.
std::vector<bool> winograd_few_small(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                                     const Tensor& divided, const Sizes& padding, double most);

}  // namespace fastlrp::edge
