#include "conv_winograd_alike.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <utility>

#include "../common/parallel.h"
#include "conv_winograd_places.h"

namespace fastlrp::cpu {
namespace {

// How many others with the same fingerprint one place is compared with.
constexpr int64_t kMostProbes = 64;

// Factors of the places of a window, odd numbers without a pattern.
constexpr uint64_t kOfTap[2 * kWinogradTaps] = {0xe220a8397b1dcdafu, 0x6e789e6aa1b965f5u, 0x6c45d188009454fu,
                                                0xf88bb8a8724c81edu, 0x1b39896a51a8749bu, 0x53cb9f0c747ea2ebu};

// Whether the numbers of two places are the same, dust aside; null stands for zeros.
bool same(const float* a, const float* b, int64_t channels, float dust) {
  if (a != nullptr && b != nullptr && std::memcmp(a, b, channels * sizeof(float)) == 0) {
    return true;
  }
  for (int64_t c = 0; c < channels; ++c) {
    const float own = a == nullptr || std::abs(a[c]) < dust ? 0.0f : a[c];
    const float given = b == nullptr || std::abs(b[c]) < dust ? 0.0f : b[c];
    if (!(own == given)) {
      return false;
    }
  }
  return true;
}

struct Map {
  const Winograd& p;
  WinogradPlaces places;

  // What is dust beside the largest number that the window of an output reads.
  float dust(int64_t y, int64_t column) const {
    if (places.kept.empty()) {
      return 0.0f;
    }
    float found = 0.0f;
    for (int64_t i = std::max<int64_t>(0, -y); i < std::min(kWinogradTaps, p.height - y); ++i) {
      for (int64_t j = std::max<int64_t>(0, -column); j < std::min(kWinogradTaps, p.width - column); ++j) {
        found = std::max(found, places.largest[(y + i) * p.width + column + j]);
      }
    }
    return winograd_dust(found);
  }

  // The numbers of a place, null where it is outside the map.
  const float* at(int64_t y, int64_t column) const {
    const bool inside = y >= 0 && y < p.height && column >= 0 && column < p.width;
    return inside ? places.x + (y * p.width + column) * p.inputs : nullptr;
  }

  bool alike(int64_t a, int64_t b) const {
    const int64_t ay = a / p.out_width - p.top, ax = a % p.out_width - p.left;
    const int64_t by = b / p.out_width - p.top, bx = b % p.out_width - p.left;
    const float own = dust(ay, ax);
    if (own != dust(by, bx)) {
      return false;
    }
    for (int64_t i = 0; i < kWinogradTaps; ++i) {
      const bool whole = at(ay + i, ax) != nullptr && at(ay + i, ax + 2) != nullptr && at(by + i, bx) != nullptr &&
                         at(by + i, bx + 2) != nullptr;
      if (whole && std::memcmp(at(ay + i, ax), at(by + i, bx), kWinogradTaps * p.inputs * sizeof(float)) == 0) {
        continue;
      }
      for (int64_t j = 0; j < kWinogradTaps; ++j) {
        if (!same(at(ay + i, ax + j), at(by + i, bx + j), p.inputs, own)) {
          return false;
        }
      }
    }
    return true;
  }
};

// One number for all that each place of the outputs reads.
std::vector<uint64_t> fingerprints(const Map& map) {
  const Winograd& p = map.p;
  std::vector<uint64_t> found(p.out_height * p.out_width);
  parallel_for(p.out_height, 8, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = std::max<int64_t>(0, p.top - i), last = std::min(kWinogradTaps, p.height + p.top - i);
      for (int64_t j = 0; j < p.out_width; ++j) {
        const int64_t left = std::max<int64_t>(0, p.left - j), right = std::min(kWinogradTaps, p.width + p.left - j);
        const float dust = map.dust(i - p.top, j - p.left);
        uint64_t total = 0;
        for (int64_t tap = first; tap < last; ++tap) {
          const int64_t at = (i - p.top + tap) * p.width + j - p.left;
          uint64_t sum = 0;
          for (int64_t b = left; b < right; ++b) {
            sum += (dust == 0.0f ? map.places.prints[at + b] : map.places.above(at + b, dust)) * kOfTap[b];
          }
          total += (sum ^ sum >> 29) * kOfTap[kWinogradTaps + tap];
        }
        found[i * p.out_width + j] = total;
      }
    }
  });
  return found;
}

// The largest size among the inputs of each tile of outputs.
std::vector<float> largest_of_tiles(const Winograd& p, const std::vector<float>& sizes) {
  const int64_t down = (p.out_height + kWinogradOut - 1) / kWinogradOut;
  const int64_t across = (p.out_width + kWinogradOut - 1) / kWinogradOut;
  std::vector<float> found(down * across);
  for (int64_t tile = 0; tile < down * across; ++tile) {
    const int64_t top = tile / across * kWinogradOut - p.top, left = tile % across * kWinogradOut - p.left;
    for (int64_t y = std::max<int64_t>(top, 0); y < std::min(top + kWinogradIn, p.height); ++y) {
      for (int64_t x = std::max<int64_t>(left, 0); x < std::min(left + kWinogradIn, p.width); ++x) {
        found[tile] = std::max(found[tile], sizes[y * p.width + x]);
      }
    }
  }
  return found;
}

// From the first of its kind to the one in the tile with the smallest inputs, for each place.
void prefer_small_tiles(const Winograd& p, const std::vector<float>& sizes, std::vector<int32_t>& first) {
  const std::vector<float> largest = largest_of_tiles(p, sizes);
  const int64_t across = (p.out_width + kWinogradOut - 1) / kWinogradOut;
  const auto size_at = [&](int64_t place) {
    return largest[place / p.out_width / kWinogradOut * across + place % p.out_width / kWinogradOut];
  };
  std::vector<int32_t> best(first);
  for (size_t place = 0; place < first.size(); ++place) {
    int32_t& known = best[first[place]];
    if (size_at(place) < size_at(known)) {
      known = static_cast<int32_t>(place);
    }
  }
  for (int32_t& own : first) {
    own = best[own];
  }
}

}  // namespace

WinogradAlike winograd_alike(const Winograd& p, int64_t sample) {
  Map map{p, WinogradPlaces(p, sample)};
  const std::vector<uint64_t> read = fingerprints(map);
  const int64_t places = static_cast<int64_t>(read.size());
  // Of twice as many slots as there are places: 0, or a place and one.
  std::vector<uint32_t> slots(std::bit_ceil(static_cast<uint64_t>(2 * places)));
  const uint64_t mask = slots.size() - 1;
  std::vector<int32_t> first(places);
  for (int64_t place = 0; place < places; ++place) {
    first[place] = static_cast<int32_t>(place);
    int64_t probes = 0;
    for (uint64_t slot = read[place] >> 20;; ++slot) {
      uint32_t& known = slots[slot & mask];
      if (known == 0) {
        known = static_cast<uint32_t>(place + 1);
        break;
      }
      if (read[known - 1] == read[place]) {
        if (map.alike(known - 1, place)) {
          first[place] = static_cast<int32_t>(known - 1);
          break;
        }
        if (++probes == kMostProbes) {
          break;
        }
      }
    }
  }
  prefer_small_tiles(p, map.places.largest, first);
  return {std::move(map.places.largest), std::move(first)};
}

}  // namespace fastlrp::cpu
