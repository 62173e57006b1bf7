// The transpose of a convolution with a few input channels, as those of a picture: products with all taps at once,
// whose results are added up where they belong.
#pragma once

#include <cstdint>

#include "../common/bf16.h"

namespace fastlrp::cpu {

// Outputs are counted in multiples of this many.
constexpr int64_t kFewLanes = 16;

// Maps have their channels innermost; sizes of two axes are (rows, columns).
struct FewShape {
  int64_t samples, outputs, channels;
  int64_t out_size[2], size[2];  // of x, (N, H', W', Co), and of y, (N, H, W, channels)
  int64_t kernel[2], stride[2], padding[2];
  int64_t targets;

  // Of the packed weight: all taps of all channels, in whole panels.
  int64_t columns() const;
};

// y = W^T (scale x), from products of Number with sums in float32.
template <class From, class Number>
struct ConvFewOf : FewShape {
  const From* x;
  const float* scale;    // null, or (N / targets, H', W', Co)
  const Number* weight;  // from conv_few_pack
  float* y;
};

using ConvFew = ConvFewOf<float, float>;

template <class From, class Number>
void conv_few(const ConvFewOf<From, Number>& p);

// A weight (Co, channels, *kernel) as the kernel reads it, Co times FewShape::columns numbers.
template <class Number>
void conv_few_pack(const FewShape& p, const float* weight, Number* packed);

}  // namespace fastlrp::cpu
