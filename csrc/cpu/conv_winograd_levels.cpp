#include "conv_winograd_levels.h"

#include <algorithm>

namespace fastlrp::cpu {
namespace {

constexpr int64_t kIn = kWinogradIn, kOut = kWinogradOut;

// One tile of a sample.
struct Tile {
  int64_t at;
  float places[kIn * kIn];  // the largest number of each
  float most;               // and of all
  uint32_t own;             // a bit for each output that is no copy

  // The largest number that an output reads.
  float read(int64_t output) const {
    const float* from = places + output / kOut * kIn + output % kOut;
    float found = 0.0f;
    for (int64_t i = 0; i < kWinogradTaps; ++i, from += kIn) {
      found = std::max({found, from[0], from[1], from[2]});
    }
    return found;
  }

  void append(std::vector<WinogradTile>& tiles) const {
    if (std::all_of(places, places + kIn * kIn, [&](float size) { return size == 0.0f || size * kLevel >= most; })) {
      tiles.push_back({at});
      return;
    }
    float above = most;
    for (uint32_t left = own; left != 0;) {
      WinogradTile level{at, 0, 0};
      float next = 0.0f;
      for (int64_t output = 0; output < kOut * kOut; ++output) {
        const uint32_t bit = left & uint32_t{1} << output;
        const float size = bit == 0 ? 0.0f : read(output);
        if (size == 0.0f || size * kLevel >= above) {
          level.written |= bit;
        } else {
          next = std::max(next, size);
        }
      }
      for (int64_t place = 0; place < kIn * kIn; ++place) {
        level.left_out |= uint64_t{places[place] > above} << place;
      }
      if (level.written != 0) {
        tiles.push_back(level);
      }
      left &= ~level.written;
      above = next;
    }
  }
};

}  // namespace

void winograd_levels(const Winograd& p, int64_t sample, const WinogradAlike& alike, std::vector<WinogradTile>& tiles) {
  const int64_t down = (p.out_height + kOut - 1) / kOut, across = (p.out_width + kOut - 1) / kOut;
  for (int64_t tile = 0; tile < down * across; ++tile) {
    Tile one{sample * down * across + tile, {}, 0.0f, 0};
    const int64_t first_row = tile / across * kOut, first_column = tile % across * kOut;
    for (int64_t i = 0; i < std::min(kOut, p.out_height - first_row); ++i) {
      for (int64_t j = 0; j < std::min(kOut, p.out_width - first_column); ++j) {
        const int64_t place = (first_row + i) * p.out_width + first_column + j;
        one.own |= uint32_t{alike.first[place] == place} << (i * kOut + j);
      }
    }
    if (one.own == 0) {
      continue;
    }
    const int64_t top = first_row - p.top, left = first_column - p.left;
    for (int64_t y = std::max<int64_t>(top, 0); y < std::min(top + kIn, p.height); ++y) {
      for (int64_t x = std::max<int64_t>(left, 0); x < std::min(left + kIn, p.width); ++x) {
        const float size = alike.largest[y * p.width + x];
        one.places[(y - top) * kIn + x - left] = size;
        one.most = std::max(one.most, size);
      }
    }
    one.append(tiles);
  }
}

}  // namespace fastlrp::cpu
