#include "conv_winograd_alike.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <utility>

#include "../common/isa.h"
#include "../common/parallel.h"

namespace fastlrp::cpu {
namespace {

// How many others with the same fingerprint one place is compared with.
constexpr int64_t kMostProbes = 64;

// Odd numbers without a pattern (Steele, Lea & Flood 2014).
uint64_t odd_number(uint64_t i) {
  uint64_t z = (i + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return (z ^ z >> 31) | 1;
}

// What is less than this part of the largest number of its window is dust: a sum of float32 that reads both has no
// digit of it, so that places which differ in nothing else tie in plain sums.
constexpr float kDust = 0x1p-45f;

FASTLRP_INLINE float size_of(float value) { return value < 0.0f ? -value : value; }

// The bits of a number without its sign are in the order of sizes, and those of infinity and what is no number come
// last. Comparisons of them are done side by side, where those of floats become branches that half of all zeros
// mislead.
constexpr uint32_t kSize = 0x7fffffff, kInfinite = 0x7f800000;

FASTLRP_INLINE uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

FASTLRP_INLINE float number_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// The largest of the sizes that lanes have seen, infinite where one is of no number.
FASTLRP_INLINE float largest_of_lanes(const uint32_t* lanes) {
  uint32_t most = 0;
  for (int64_t lane = 0; lane < kWinogradLanes; ++lane) {
    most = lanes[lane] > most ? lanes[lane] : most;
  }
  return number_of(most < kInfinite ? most : kInfinite);
}

// The largest number of a place, infinite where one is none.
FASTLRP_INLINE float largest_of(const float* x, int64_t channels) {
  uint32_t lanes[kWinogradLanes] = {};
  for (int64_t c = 0; c < channels; c += kWinogradLanes) {
    for (int64_t lane = 0; lane < kWinogradLanes; ++lane) {
      const uint32_t size = bits_of(x[c + lane]) & kSize;
      lanes[lane] = size > lanes[lane] ? size : lanes[lane];
    }
  }
  return largest_of_lanes(lanes);
}

// What is dust beside it.
FASTLRP_INLINE float dust_of(float largest) {
  return largest <= std::numeric_limits<float>::max() ? largest * kDust : 0.0f;
}

FASTLRP_INLINE uint64_t joined(const uint32_t* lanes, const uint32_t* odd) {
  uint32_t low = 0, high = 0;
  for (int64_t lane = 0; lane < kWinogradLanes; ++lane) {
    const uint32_t mixed = lanes[lane] ^ lanes[lane] >> 16;
    low += mixed * odd[lane];
    high += mixed * odd[kWinogradLanes + lane];
  }
  return uint64_t{high} << 32 | low;
}

// One number for all channels of each place; 0 for zeros alone, of either sign.
struct Fingerprints {
  // Of a place that may have dust, which counts as zero.
  FASTLRP_INLINE static uint64_t without_dust(const float* x, const uint32_t* odd, int64_t channels, float dust) {
    uint32_t lanes[kWinogradLanes] = {};
    for (int64_t c = 0; c < channels; c += kWinogradLanes) {
      for (int64_t lane = 0; lane < kWinogradLanes; ++lane) {
        const uint32_t bits = bits_of(size_of(x[c + lane]) < dust ? 0.0f : x[c + lane] + 0.0f);
        lanes[lane] += (bits ^ bits >> 15) * odd[c + lane];
      }
    }
    return joined(lanes, odd + channels);
  }

  FASTLRP_INLINE static void run(const float* x, const uint32_t* odd, int64_t channels, int64_t places, uint64_t* to,
                                 float* largest) {
    uint32_t least[kWinogradLanes];  // one less than the smallest size of all that are not zero
    std::memset(least, 0xff, sizeof(least));
    float most = 0.0f;
    for (int64_t place = 0; place < places; ++place) {
      const float* from = x + place * channels;
      uint32_t lanes[kWinogradLanes] = {}, sizes[kWinogradLanes] = {};
      for (int64_t c = 0; c < channels; c += kWinogradLanes) {
        for (int64_t lane = 0; lane < kWinogradLanes; ++lane) {
          const uint32_t bits = bits_of(from[c + lane] + 0.0f), size = bits & kSize;
          lanes[lane] += (bits ^ bits >> 15) * odd[c + lane];
          sizes[lane] = size > sizes[lane] ? size : sizes[lane];
          least[lane] = size - 1 < least[lane] ? size - 1 : least[lane];
        }
      }
      to[place] = joined(lanes, odd + channels);
      largest[place] = largest_of_lanes(sizes);
      most = largest[place] > most && largest[place] <= std::numeric_limits<float>::max() ? largest[place] : most;
    }
    uint32_t smallest = least[0];
    for (int64_t lane = 1; lane < kWinogradLanes; ++lane) {
      smallest = least[lane] < smallest ? least[lane] : smallest;
    }
    // Dust of one place is dust beside the largest number of all. Then all places are looked at again.
    if (smallest >= bits_of(dust_of(most))) {
      return;
    }
    for (int64_t place = 0; place < places; ++place) {
      to[place] = without_dust(x + place * channels, odd, channels, dust_of(largest[place]));
    }
  }
};

bool is_zero(const float* x, int64_t count) {
  return std::all_of(x, x + count, [](float value) { return value == 0.0f; });
}

// Whether the numbers of two places are the same, dust aside; null stands for zeros.
bool same(const float* a, const float* b, int64_t channels) {
  if (a == nullptr || b == nullptr) {
    return (a == nullptr || is_zero(a, channels)) && (b == nullptr || is_zero(b, channels));
  }
  if (std::memcmp(a, b, channels * sizeof(float)) == 0) {
    return true;
  }
  const float less = dust_of(largest_of(a, channels)), other = dust_of(largest_of(b, channels));
  for (int64_t c = 0; c < channels; ++c) {
    const float own = size_of(a[c]) < less ? 0.0f : a[c], given = size_of(b[c]) < other ? 0.0f : b[c];
    if (!(own == given)) {
      return false;
    }
  }
  return true;
}

struct Map {
  const Winograd& p;
  const float* x;
  std::vector<float> largest;  // of each place
  bool dusty;                  // whether there may be places of dust alone

  // The largest number that the window of an output reads, and what is dust beside it.
  float dust(int64_t y, int64_t column) const {
    if (!dusty) {
      return 0.0f;
    }
    float found = 0.0f;
    for (int64_t i = std::max<int64_t>(0, -y); i < std::min(kWinogradTaps, p.height - y); ++i) {
      for (int64_t j = std::max<int64_t>(0, -column); j < std::min(kWinogradTaps, p.width - column); ++j) {
        found = std::max(found, largest[(y + i) * p.width + column + j]);
      }
    }
    return dust_of(found);
  }

  // The numbers of a place, null where they are outside the map or dust.
  const float* above(float dust, int64_t y, int64_t column) const {
    const float* found = at(y, column);
    return found == nullptr || largest[y * p.width + column] < dust ? nullptr : found;
  }

  const float* at(int64_t y, int64_t column) const {
    return y < 0 || y >= p.height || column < 0 || column >= p.width ? nullptr : x + (y * p.width + column) * p.inputs;
  }

  bool alike(int64_t a, int64_t b) const {
    const int64_t ay = a / p.out_width - p.top, ax = a % p.out_width - p.left;
    const int64_t by = b / p.out_width - p.top, bx = b % p.out_width - p.left;
    const float own = dust(ay, ax), other = dust(by, bx);
    for (int64_t i = 0; i < kWinogradTaps; ++i) {
      const bool whole = at(ay + i, ax) != nullptr && at(ay + i, ax + 2) != nullptr && at(by + i, bx) != nullptr &&
                         at(by + i, bx + 2) != nullptr;
      if (whole && std::memcmp(at(ay + i, ax), at(by + i, bx), kWinogradTaps * p.inputs * sizeof(float)) == 0) {
        continue;
      }
      for (int64_t j = 0; j < kWinogradTaps; ++j) {
        if (!same(above(own, ay + i, ax + j), above(other, by + i, bx + j), p.inputs)) {
          return false;
        }
      }
    }
    return true;
  }
};

// One number for all that each place of the outputs reads.
std::vector<uint64_t> fingerprints(Map& map) {
  const Winograd& p = map.p;
  std::vector<uint32_t> odd(p.inputs + 2 * kWinogradLanes);
  for (size_t i = 0; i < odd.size(); ++i) {
    odd[i] = static_cast<uint32_t>(odd_number(i)) | 1;
  }
  std::vector<uint64_t> place(p.height * p.width), found(p.out_height * p.out_width);
  map.largest.resize(p.height * p.width);
  parallel_for(p.height, 8, [&](int64_t begin, int64_t end) {
    run_best<Fingerprints>(map.x + begin * p.width * p.inputs, static_cast<const uint32_t*>(odd.data()), p.inputs,
                           (end - begin) * p.width, place.data() + begin * p.width,
                           map.largest.data() + begin * p.width);
  });
  float least = std::numeric_limits<float>::infinity(), most = 0.0f;
  for (const float one : map.largest) {
    least = one > 0.0f && one < least ? one : least;
    most = one > most ? one : most;
  }
  map.dusty = !(least >= most * kDust);
  uint64_t times[2 * kWinogradTaps];
  for (int64_t tap = 0; tap < 2 * kWinogradTaps; ++tap) {
    times[tap] = odd_number(tap);
  }
  parallel_for(p.out_height, 8, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = std::max<int64_t>(0, p.top - i), last = std::min(kWinogradTaps, p.height + p.top - i);
      for (int64_t j = 0; j < p.out_width; ++j) {
        const int64_t left = std::max<int64_t>(0, p.left - j), right = std::min(kWinogradTaps, p.width + p.left - j);
        const float dust = map.dust(i - p.top, j - p.left);
        uint64_t total = 0;
        if (dust == 0.0f) {
          for (int64_t tap = first; tap < last; ++tap) {
            const uint64_t* from = place.data() + (i - p.top + tap) * p.width + j - p.left;
            uint64_t sum = 0;
            for (int64_t b = left; b < right; ++b) {
              sum += from[b] * times[b];
            }
            total += (sum ^ sum >> 29) * times[kWinogradTaps + tap];
          }
          found[i * p.out_width + j] = total;
          continue;
        }
        for (int64_t tap = first; tap < last; ++tap) {
          const int64_t at = (i - p.top + tap) * p.width + j - p.left;
          uint64_t sum = 0;
          for (int64_t b = left; b < right; ++b) {
            sum += map.largest[at + b] < dust ? 0 : place[at + b] * times[b];
          }
          total += (sum ^ sum >> 29) * times[kWinogradTaps + tap];
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
  Map map{p, p.x + sample * p.height * p.width * p.inputs, {}, false};
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
  prefer_small_tiles(p, map.largest, first);
  return {std::move(map.largest), std::move(first)};
}

}  // namespace fastlrp::cpu
