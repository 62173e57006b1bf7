#include "conv_winograd_places.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "../common/isa.h"
#include "../common/parallel.h"

namespace fastlrp::cpu {
namespace {

// Odd numbers without a pattern (Steele, Lea & Flood 2014).
uint64_t odd_number(uint64_t i) {
  uint64_t z = (i + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return (z ^ z >> 31) | 1;
}

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

FASTLRP_INLINE uint32_t most_of(const uint32_t* lanes) {
  uint32_t most = 0;
  for (int64_t lane = 0; lane < kWinogradLanes; ++lane) {
    most = lanes[lane] > most ? lanes[lane] : most;
  }
  return most;
}

FASTLRP_INLINE uint32_t least_of(const uint32_t* lanes) {
  uint32_t least = lanes[0];
  for (int64_t lane = 1; lane < kWinogradLanes; ++lane) {
    least = lanes[lane] < least ? lanes[lane] : least;
  }
  return least;
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

// The prints and largest numbers of some places, and the smallest number of all that is not zero.
struct Prints {
  FASTLRP_INLINE static void run(const float* x, const uint32_t* odd, int64_t channels, int64_t places, uint64_t* to,
                                 float* largest, float* smallest) {
    uint32_t least[kWinogradLanes];  // one less than it
    std::memset(least, 0xff, sizeof(least));
    for (int64_t place = 0; place < places; ++place, x += channels) {
      uint32_t lanes[kWinogradLanes] = {}, sizes[kWinogradLanes] = {};
      for (int64_t c = 0; c < channels; c += kWinogradLanes) {
        for (int64_t lane = 0; lane < kWinogradLanes; ++lane) {
          const uint32_t bits = bits_of(x[c + lane] + 0.0f), size = bits & kSize;
          lanes[lane] += (bits ^ bits >> 15) * odd[c + lane];
          sizes[lane] = size > sizes[lane] ? size : sizes[lane];
          least[lane] = size - 1 < least[lane] ? size - 1 : least[lane];
        }
      }
      const uint32_t most = most_of(sizes);
      to[place] = joined(lanes, odd + channels);
      largest[place] = number_of(most < kInfinite ? most : kInfinite);
    }
    const uint32_t found = least_of(least);
    *smallest = number_of(found < kInfinite ? found + 1 : kInfinite);
  }
};

// The print of a place where less than `dust` counts as zero, and the smallest of its other numbers.
struct PrintAboveDust {
  FASTLRP_INLINE static void run(const float* x, const uint32_t* odd, int64_t channels, float dust, uint64_t* to,
                                 float* kept) {
    const uint32_t limit = bits_of(dust);
    uint32_t lanes[kWinogradLanes] = {}, least[kWinogradLanes];
    std::memset(least, 0xff, sizeof(least));
    for (int64_t c = 0; c < channels; c += kWinogradLanes) {
      for (int64_t lane = 0; lane < kWinogradLanes; ++lane) {
        const uint32_t own = bits_of(x[c + lane] + 0.0f);
        const uint32_t bits = own & (static_cast<uint32_t>((own & kSize) < limit) - 1), size = bits & kSize;
        lanes[lane] += (bits ^ bits >> 15) * odd[c + lane];
        least[lane] = size - 1 < least[lane] ? size - 1 : least[lane];
      }
    }
    const uint32_t found = least_of(least);
    *to = joined(lanes, odd + channels);
    *kept = number_of(found < kInfinite ? found + 1 : kInfinite);
  }
};

}  // namespace

float winograd_dust(float largest) { return largest <= std::numeric_limits<float>::max() ? largest * kDust : 0.0f; }

WinogradPlaces::WinogradPlaces(const Winograd& p, int64_t sample)
    : x(p.x + sample * p.height * p.width * p.inputs),
      channels(p.inputs),
      odd(p.inputs + 2 * kWinogradLanes),
      prints(p.height * p.width),
      largest(prints.size()) {
  if (prints.empty()) {
    return;
  }
  for (size_t i = 0; i < odd.size(); ++i) {
    odd[i] = static_cast<uint32_t>(odd_number(i)) | 1;
  }
  std::vector<float> smallest(p.height, std::numeric_limits<float>::infinity());
  parallel_for(p.height, 8, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * p.width;
    run_best<Prints>(x + first * channels, static_cast<const uint32_t*>(odd.data()), channels, (end - begin) * p.width,
                     &prints[first], &largest[first], &smallest[begin]);
  });
  float most = 0.0f;
  for (const float one : largest) {
    most = one > most && one <= std::numeric_limits<float>::max() ? one : most;
  }
  if (*std::min_element(smallest.begin(), smallest.end()) >= winograd_dust(most)) {
    return;
  }
  kept.resize(prints.size());
  parallel_for(static_cast<int64_t>(prints.size()), 256, [&](int64_t begin, int64_t end) {
    for (int64_t place = begin; place < end; ++place) {
      run_best<PrintAboveDust>(x + place * channels, static_cast<const uint32_t*>(odd.data()), channels,
                               winograd_dust(largest[place]), &prints[place], &kept[place]);
    }
  });
}

uint64_t WinogradPlaces::above(int64_t place, float dust) const {
  if (kept[place] >= dust) {
    return prints[place];
  }
  if (largest[place] < dust) {
    return 0;
  }
  uint64_t found;
  float unread;
  run_best<PrintAboveDust>(x + place * channels, static_cast<const uint32_t*>(odd.data()), channels, dust, &found,
                           &unread);
  return found;
}

}  // namespace fastlrp::cpu
