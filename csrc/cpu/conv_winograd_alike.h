// Which places of a 3x3 convolution read the same numbers.
#pragma once

#include <cstdint>
#include <vector>

#include "conv_winograd.h"

namespace fastlrp::cpu {

// For each place of one sample's outputs, (H', W'), the first one in the order of rows whose 3x3 inputs are the same
// numbers, zeros around the map included; itself where there is no other.
std::vector<int32_t> winograd_alike(const Winograd& p, int64_t sample);

}  // namespace fastlrp::cpu
