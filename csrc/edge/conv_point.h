#pragma once

#include "elementwise.h"

namespace fastlrp::edge {

// Matrices (depth, columns) of float32, to be summed up one after the other, as products of bfloat16 read them, or
// `full` those of float32. Their sizes are the same, in multiples of 16.
Tensor conv_point_pack(const std::vector<Tensor>& matrices, bool full);

// A 1x1 convolution, x (N, Ci, H, W) to (N, Co, H', W'), with `packed` of W^T in float32; not below zero where asked
// for.
Tensor conv_point(const Tensor& x, const Tensor& packed, const OptionalTensor& bias, const Sizes& stride,
                  bool not_negative);

// Coefficients u and v of a rule (common/rule.h) from sums P = W x + bias of a 1x1 convolution, x (N, Ci, H, W) and W
// without a negative entry, and `packed` of W^T: "zplus"; "gamma", whose negative sums are z - P; "raised", which is
// epsilon of z + alpha P. z and factor, which is multiplied with `times` if that is
// given: (N, Co, H', W').
CoefficientTensors conv_point_coefficients(const Tensor& x, const Tensor& packed, const OptionalTensor& bias,
                                           const OptionalTensor& z, const OptionalTensor& factor,
                                           const std::string& rule, double alpha, double epsilon, const Sizes& stride,
                                           const OptionalTensor& times = {});

// The sum of W^T (coefficient * relevance) over several weights and their coefficients: relevance (B, K, Co, H', W') of
// float32 or bfloat16, coefficients (B, Co, H', W'), `packed` of the weights (Co, Ci). To (B, K, Ci, *size) in
// the dtype of `packed`, or in float32 for `in_full`; packed of float32 takes no relevance of bfloat16.
Tensor conv_point_transposed(const Tensor& relevance, const std::vector<Tensor>& coefficients, const Tensor& packed,
                             const Sizes& size, const Sizes& stride, bool in_full = false);

// The same in float32 where sign (B, Ci, H, W) chooses: by the weights of `above` where that is above zero, of `below`
// elsewhere, and 0 where it is zero. Both are packed of float32, of weights that zeros fill up to multiples of 16.
Tensor conv_point_chosen(const Tensor& relevance, const std::vector<Tensor>& coefficients, const Tensor& above,
                         const Tensor& below, const Tensor& sign, const Sizes& stride);

}  // namespace fastlrp::edge
