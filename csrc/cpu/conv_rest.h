// Sums of one sign of a convolution as what is left of others, N = P - z, where z = P - N is its output; and what is
// divided by both (common/rule.h, zplus).
#pragma once

#include <cstdint>

namespace fastlrp::cpu {

// Maps have their channels innermost. Sizes of two axes are (rows, columns).
struct ConvRest {
  int64_t samples, inputs, outputs;
  int64_t size[2], out_size[2];  // of x, (N, H, W, Ci), and of y, (N, H', W', Co)
  int64_t kernel[2], stride[2], padding[2], dilation[2];
  const float* x;
  const float* weight;  // (Co, *kernel, Ci): that of the sums y
  const float* bias;    // null, or (Co): of y
  const float* whole;   // z, (N, H', W', Co)
  const float* part;    // P, as large
  const float* factor;  // null for 1, or what is divided by y and P, as large; where it is zero neither is read
  float most, alpha, beta, epsilon;
  float* above;  // alpha factor / (P + epsilon), as large
  float* below;  // beta factor / (y + epsilon)
};

// y = part - whole, the difference of two sums, loses digits where it is much smaller than these. Where `whole`, or the
// size of `factor`, is more than `most` times y it is made again as a plain sum. Where that are more than one in
// kRestAgain of a sample's, kept[n] is false and its `below` is not to be read.
constexpr int64_t kRestAgain = 32;
void conv_rest(const ConvRest& p, bool* kept);

// The same where z is shift - whole, with shift (Co) or null for 0, `part` is that of every sample, (H', W', Co), and
// nothing is divided by it: `above` is not written, and alpha not read. Where the size of `whole` is more than `most`
// times y, what that rounds is too much as well.
void conv_rest_of_box(const ConvRest& p, const float* shift, bool* kept);

}  // namespace fastlrp::cpu
