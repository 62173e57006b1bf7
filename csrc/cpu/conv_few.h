// The transpose of a convolution with a few input channels, as those of a picture: products with all taps at once,
// whose results are added up where they belong.
#pragma once

#include <cstdint>

namespace fastlrp::cpu {

// Outputs are counted in multiples of this many.
constexpr int64_t kFewLanes = 16;

// y = W^T (scale x). Maps have their channels innermost; sizes of two axes are (rows, columns).
struct ConvFew {
  int64_t samples, outputs, channels;
  int64_t out_size[2], size[2];  // of x, (N, H', W', Co), and of y, (N, H, W, channels)
  int64_t kernel[2], stride[2], padding[2];
  const float* x;
  const float* scale;  // null, or (N / targets, H', W', Co)
  int64_t targets;
  const float* weight;  // from conv_few_pack
  float* y;

  // Of the packed weight: all taps of all channels, in whole panels.
  int64_t columns() const;
};

void conv_few(const ConvFew& p);

// A weight (Co, channels, *kernel) as the kernel reads it, Co times ConvFew::columns numbers.
void conv_few_pack(const ConvFew& p, const float* weight, float* packed);

}  // namespace fastlrp::cpu
