// 3x3 convolutions by Winograd's filtering F(4x4, 3x3): tiles of 6x6 inputs and 4x4 outputs, 36 products in place of
// 144.
#pragma once

#include <cstdint>

namespace fastlrp::cpu {

// Numbers of one tile, and along one axis: what is read, what is written, and what each weight becomes.
constexpr int64_t kWinogradIn = 6, kWinogradOut = 4, kWinogradTaps = 3, kWinogradParts = kWinogradIn * kWinogradIn;

// Channels are counted in multiples of this many.
constexpr int64_t kWinogradLanes = 16;

// Tiles that one block has at most.
constexpr int64_t kWinogradMost = 96;

// y = W x + b with strides of 1; maps have their channels innermost.
struct Winograd {
  int64_t samples, height, width, inputs;  // of x, (N, H, W, Ci)
  int64_t out_height, out_width, outputs;  // of y, (N, H', W', Co)
  int64_t top, left;                       // zeros before the first row and column
  const float* x;
  const float* scale;  // null, or what x is multiplied with, (N / targets, H, W, Ci)
  int64_t targets;
  const float* weight;  // from winograd_pack
  const float* bias;    // null, or (Co)
  const float* least;   // null, or what y is at the least, (N, H', W', Co)
  bool not_negative;    // y is at the least zero
  float* y;
  bool alike;  // places of a sample that read the same numbers get the same, bit for bit; without `scale` and `least`
  // null, or as `scale`: x has half of the inputs, and x times `second` stands behind x times `scale`.
  const float* second = nullptr;
};

void winograd_convolution(const Winograd& p);

// Weights (Co, Ci, 3, 3) as the kernel reads them, 36 Co Ci numbers; `turned`: those of the transpose, (Ci, Co, 3, 3)
// of the weights of a convolution (Co, Ci, 3, 3) whose taps stand in reverse order.
void winograd_pack(int64_t outputs, int64_t inputs, const float* weight, bool turned, float* packed);

}  // namespace fastlrp::cpu
