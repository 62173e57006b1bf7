#include "conv_winograd_alike.h"

#include <algorithm>
#include <bit>
#include <cstring>

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

// One number for all channels of a place, 0 for zeros alone of either sign; and the bits of the largest size among
// them, of which those of infinity and of what is no number are the largest.
struct Fingerprints {
  FASTLRP_INLINE static void run(const float* x, const uint32_t* odd, int64_t channels, int64_t places, uint64_t* to,
                                 uint32_t* sizes) {
    for (int64_t place = 0; place < places; ++place, x += channels) {
      uint32_t lanes[kWinogradLanes] = {}, largest[kWinogradLanes] = {};
      for (int64_t c = 0; c < channels; c += kWinogradLanes) {
        for (int64_t lane = 0; lane < kWinogradLanes; ++lane) {
          const float value = x[c + lane] + 0.0f;
          uint32_t bits;
          std::memcpy(&bits, &value, sizeof(bits));
          lanes[lane] += (bits ^ bits >> 15) * odd[c + lane];
          const uint32_t size = bits & 0x7fffffffu;
          largest[lane] = size > largest[lane] ? size : largest[lane];
        }
      }
      uint32_t low = 0, high = 0, most = 0;
      for (int64_t lane = 0; lane < kWinogradLanes; ++lane) {
        const uint32_t mixed = lanes[lane] ^ lanes[lane] >> 16;
        low += mixed * odd[lane];
        high += mixed * odd[channels + lane];
        most = largest[lane] > most ? largest[lane] : most;
      }
      sizes[place] = most;
      to[place] = uint64_t{high} << 32 | low;
    }
  }
};

bool is_zero(const float* x, int64_t count) {
  return std::all_of(x, x + count, [](float value) { return value == 0.0f; });
}

// Whether `count` numbers are the same; null stands for zeros.
bool same(const float* a, const float* b, int64_t count) {
  if (a == nullptr || b == nullptr) {
    return (a == nullptr || is_zero(a, count)) && (b == nullptr || is_zero(b, count));
  }
  return std::memcmp(a, b, count * sizeof(float)) == 0 || std::equal(a, a + count, b);
}

struct Map {
  const Winograd& p;
  const float* x;

  const float* at(int64_t y, int64_t column) const {
    return y < 0 || y >= p.height || column < 0 || column >= p.width ? nullptr : x + (y * p.width + column) * p.inputs;
  }

  bool alike(int64_t a, int64_t b) const {
    const int64_t ay = a / p.out_width - p.top, ax = a % p.out_width - p.left;
    const int64_t by = b / p.out_width - p.top, bx = b % p.out_width - p.left;
    for (int64_t i = 0; i < kWinogradTaps; ++i) {
      const bool whole = at(ay + i, ax) != nullptr && at(ay + i, ax + 2) != nullptr && at(by + i, bx) != nullptr &&
                         at(by + i, bx + 2) != nullptr;
      for (int64_t j = 0; j < (whole ? 1 : kWinogradTaps); ++j) {
        if (!same(at(ay + i, ax + j), at(by + i, bx + j), p.inputs * (whole ? kWinogradTaps : 1))) {
          return false;
        }
      }
    }
    return true;
  }
};

// One number for all that each place of the outputs reads; `sizes`: of each place of the inputs.
std::vector<uint64_t> fingerprints(const Map& map, std::vector<uint32_t>& sizes) {
  const Winograd& p = map.p;
  std::vector<uint32_t> odd(p.inputs + kWinogradLanes);
  for (size_t i = 0; i < odd.size(); ++i) {
    odd[i] = static_cast<uint32_t>(odd_number(i)) | 1;
  }
  std::vector<uint64_t> place(p.height * p.width), row(p.height * p.out_width), found(p.out_height * p.out_width);
  parallel_for(p.height, 8, [&](int64_t begin, int64_t end) {
    run_best<Fingerprints>(map.x + begin * p.width * p.inputs, static_cast<const uint32_t*>(odd.data()), p.inputs,
                           (end - begin) * p.width, place.data() + begin * p.width, sizes.data() + begin * p.width);
    for (int64_t y = begin; y < end; ++y) {
      for (int64_t j = 0; j < p.out_width; ++j) {
        const int64_t first = std::max<int64_t>(0, p.left - j), last = std::min(kWinogradTaps, p.width + p.left - j);
        uint64_t sum = 0;
        for (int64_t tap = first; tap < last; ++tap) {
          sum += place[y * p.width + j - p.left + tap] * odd_number(tap);
        }
        row[y * p.out_width + j] = sum ^ sum >> 29;
      }
    }
  });
  for (int64_t i = 0; i < p.out_height; ++i) {
    const int64_t first = std::max<int64_t>(0, p.top - i), last = std::min(kWinogradTaps, p.height + p.top - i);
    for (int64_t tap = first; tap < last; ++tap) {
      const uint64_t times = odd_number(kWinogradTaps + tap);
      const uint64_t* from = row.data() + (i - p.top + tap) * p.out_width;
      for (int64_t j = 0; j < p.out_width; ++j) {
        found[i * p.out_width + j] += from[j] * times;
      }
    }
  }
  return found;
}

// The largest size among the inputs of each tile of outputs.
std::vector<uint32_t> largest_of_tiles(const Winograd& p, const std::vector<uint32_t>& sizes) {
  const int64_t down = (p.out_height + kWinogradOut - 1) / kWinogradOut;
  const int64_t across = (p.out_width + kWinogradOut - 1) / kWinogradOut;
  std::vector<uint32_t> found(down * across);
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
void prefer_small_tiles(const Winograd& p, const std::vector<uint32_t>& sizes, std::vector<int32_t>& first) {
  const std::vector<uint32_t> largest = largest_of_tiles(p, sizes);
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

std::vector<int32_t> winograd_alike(const Winograd& p, int64_t sample) {
  const Map map{p, p.x + sample * p.height * p.width * p.inputs};
  std::vector<uint32_t> sizes(p.height * p.width);
  const std::vector<uint64_t> read = fingerprints(map, sizes);
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
  prefer_small_tiles(p, sizes, first);
  return first;
}

}  // namespace fastlrp::cpu
