// The transpose of a depthwise convolution, whose weights may go by the sign of the input: one pass over what arrives
// and what leaves, in place of a product for each sign, its operands and the choice between their results.
#pragma once

#include <cstdint>

namespace fastlrp::cpu {

// At least so many channels, which fill the widest register, and at most so many taps along an axis.
constexpr int64_t kDepthLanes = 16, kDepthTaps = 32;

// y = W^T (scale x) of a convolution with one weight per channel and tap. With a sign that is y = W+^T (scale x) where
// it is above zero, W-^T (scale x) below and for what is not a number, and zero where it is zero. Maps have their
// channels innermost; sizes of two axes are (rows, columns).
struct ConvDepth {
  int64_t samples, channels;
  int64_t out_size[2], size[2];  // of x, (N, H', W', C), and of y, (N, H, W, C)
  int64_t kernel[2], stride[2], padding[2], dilation[2];
  const float* x;
  const float* scale;  // null, or (N / targets, H', W', C)
  const float* sign;   // null, or (N / targets, H, W, C)
  int64_t targets;
  const float* weight;  // (taps, C), of W+ and behind it of W- with a sign
  float* y;

  // Rows of x that one row of y reads, at most.
  int64_t rows_read() const { return (kernel[0] - 1) * dilation[0] / stride[0] + 1; }
};

void conv_depth(const ConvDepth& p);

}  // namespace fastlrp::cpu
