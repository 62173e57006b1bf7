// What each place of a map holds, in one number.
#pragma once

#include <cstdint>
#include <vector>

#include "conv_winograd.h"

namespace fastlrp::cpu {

// What is less than this part of the largest number of its window is dust: a sum of float32 that reads both has no
// digit of it, so that places which differ in nothing else tie in plain sums.
constexpr float kDust = 0x1p-45f;

// Below which size a number is dust beside the largest one; zero where that is infinite.
float winograd_dust(float largest);

// The places of one sample's inputs, (H, W).
struct WinogradPlaces {
  WinogradPlaces(const Winograd& p, int64_t sample);

  const float* x;
  int64_t channels;
  std::vector<uint32_t> odd;
  std::vector<uint64_t> prints;  // one number for all channels but dust beside the place's own; 0 for zeros alone
  std::vector<float> largest;    // infinite where one is no number
  std::vector<float> kept;       // the smallest that is no such dust; empty where no window of the map has any

  // The print of a place in a window with that dust; for maps with dust.
  uint64_t above(int64_t place, float dust) const;
};

}  // namespace fastlrp::cpu
