#pragma once

#include "conv_panels.h"
#include "conv_winograd.h"

namespace fastlrp::cpu {

// Tiles [first, first + count) of all samples, or of `order` if that is not null. `in` has room for 36 parts of `step`
// >= count * inputs numbers each, `out` for 36 of `out_step` >= count * outputs.
using WinogradTiles = void (*)(const Winograd& p, const int64_t* order, int64_t first, int64_t count, float* in,
                               int64_t in_step, float* out, int64_t out_step);

// For the instruction set in use.
WinogradTiles winograd_tiles();

}  // namespace fastlrp::cpu
