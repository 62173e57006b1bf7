// How even maps are from place to place, tile by tile of Winograd's filtering, which rounds relative to the largest
// numbers of a tile.
#pragma once

#include <cstdint>

#include "conv_winograd.h"

namespace fastlrp::cpu {

// even[n] = whether in each tile of sample n no place holds more than `most` times what any window of the tile reads,
// windows of zeros alone left out. What a place holds is the sum of its sizes over all channels. `p` is the call that
// is asked about, of which weight, bias, least and y are not read.
void winograd_even(const Winograd& p, float most, bool* even);

// What sums y, (N, H', W', Co), are multiplied with afterwards.
struct WinogradShares {
  const float* times;  // (N / targets, H', W', Co)
  const float* sizes;  // (Co), the largest weight of each output
};

// told[n] = whether in each tile of sample n what rounding makes of a sum y is small beside the tile's shares: what its
// fullest place holds, times the largest weight and factor, is at most `most` times the sum of the sizes of `y times`.
void winograd_tells(const Winograd& p, const WinogradShares& shares, float most, bool* told);

// A 3x3 convolution's sums, to be made again where they are small.
struct WinogradRepair {
  int64_t samples, height, width, inputs;  // of x, (N, H, W, Ci)
  int64_t out_height, out_width, outputs;  // of y, (N, H', W', Co)
  int64_t top, left;                       // zeros before the first row and column
  const float* x;
  const float* weight;   // (Co, 3, 3, Ci)
  const float* bias;     // null, or (Co)
  const float* divided;  // what is divided by y, (N, H', W', Co)
  float most;
  float* y;
};

// Makes a plain sum of each y of which `divided` is more than `most` times in size. Where that are more than one in
// kRepaired of a sample's sums, kept[n] is false and its sums are as they were.
constexpr int64_t kRepaired = 32;
void winograd_repair(const WinogradRepair& p, bool* kept);

// few[n] = whether few of a sample's sums would be made again, by a choice of them; y is not read.
void winograd_few_small(const WinogradRepair& p, bool* few);

}  // namespace fastlrp::cpu
