// Which places of a 3x3 convolution read the same numbers.
#pragma once

#include <cstdint>
#include <vector>

#include "conv_winograd.h"

namespace fastlrp::cpu {

struct WinogradAlike {
  std::vector<float> largest;  // the largest number of each place of the inputs, (H, W), infinite where one is none
  std::vector<int32_t> first;
};

// `first`: for each place of one sample's outputs, (H', W'), the one among those with the same 3x3 inputs, zeros around
// the map included, that all of them take their numbers from: in the tile whose largest input is the smallest, as
// errors are relative to that; of several the first in the order of rows.
WinogradAlike winograd_alike(const Winograd& p, int64_t sample);

}  // namespace fastlrp::cpu
