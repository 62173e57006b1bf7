#pragma once

#include "conv_panels.h"
#include "conv_winograd.h"

namespace fastlrp::cpu {

// One tile of all samples, or some windows of it, computed as if other places of the tile were zero.
struct WinogradTile {
  int64_t at;
  uint64_t left_out = 0;      // a bit for each of the 6x6 places that count as zero
  uint32_t written = 0xffff;  // a bit for each of the 4x4 outputs that are written
};

// Tiles [first, first + count) of all samples, or of `order` if that is not null. `in` has room for 36 parts of `step`
// >= count * inputs numbers each, `out` for 36 of `out_step` >= count * outputs.
using WinogradTiles = void (*)(const Winograd& p, const WinogradTile* order, int64_t first, int64_t count, float* in,
                               int64_t in_step, float* out, int64_t out_step);

// For the instruction set in use.
WinogradTiles winograd_tiles();

}  // namespace fastlrp::cpu
