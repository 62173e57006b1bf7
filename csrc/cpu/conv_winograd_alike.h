// Which places of a 3x3 convolution read the same numbers.
#pragma once

#include <cstdint>
#include <vector>

#include "conv_winograd.h"

namespace fastlrp::cpu {

// For each place of one sample's outputs, (H', W'), the one among those with the same 3x3 inputs, zeros around the map
// included, that all of them take their numbers from: in the tile whose largest input is the smallest, as errors are
// relative to that; of several the first in the order of rows.
std::vector<int32_t> winograd_alike(const Winograd& p, int64_t sample);

}  // namespace fastlrp::cpu
