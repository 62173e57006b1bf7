#pragma once

#include <cstdint>

#include "axis.h"

// Where the values of a sample's map lie: (C, z, y, x) in memory, or (z, y, x, C) when channels last.

// A loop whose body has enough to do: unrolled it would only take registers.
#ifdef __CUDA_ARCH__
#define FASTLRP_ROLLED _Pragma("unroll 1")
#else
#define FASTLRP_ROLLED
#endif

namespace fastlrp {

struct Spot {
  int32_t z, y, x;
  uint32_t channel;
};

// A map of which a thread takes `width` values that are neighbours in memory: channels of one position, or, if not
// channels last, one value. Item n begins at element n * width of the sample; a sample has fewer than 2^31 elements.
struct MapOrder {
  Divisor inner, sizes_y, sizes_x;  // of inner: items of a position, or of a channel
  uint32_t width = 1;
  bool channels_last = false;

  MapOrder() = default;

  // None of the numbers is 0, and width divides channels.
  MapOrder(int64_t channels, int64_t size_z, int64_t size_y, int64_t size_x, int64_t width_, bool channels_last_)
      : inner(channels_last_ ? channels / width_ : size_z * size_y * size_x),
        sizes_y(size_y),
        sizes_x(size_x),
        width(static_cast<uint32_t>(width_)),
        channels_last(channels_last_) {}

  FASTLRP_HOST_DEVICE Spot at(uint32_t item) const {
    const uint32_t outer = inner.divide(item), rest = item - outer * inner.value;
    const uint32_t position = channels_last ? outer : rest;
    const uint32_t row = sizes_x.divide(position), z = sizes_y.divide(row);
    return {static_cast<int32_t>(z), static_cast<int32_t>(row - z * sizes_y.value),
            static_cast<int32_t>(position - row * sizes_x.value), channels_last ? rest * width : outer};
  }
};

// Element begin + position * step of a sample is a channel's at a position.
struct Channel {
  uint32_t begin, step;
  FASTLRP_HOST_DEVICE uint32_t at(uint32_t position) const { return begin + position * step; }
};

FASTLRP_HOST_DEVICE Channel channel_of(uint32_t channel, int64_t channels, int64_t positions, bool channels_last) {
  return channels_last ? Channel{channel, static_cast<uint32_t>(channels)}
                       : Channel{static_cast<uint32_t>(channel * positions), 1};
}

// visit(position, z, y, x) for all places of three spans of a map with these sizes of the last two axes, x fastest.
template <class Visit>
FASTLRP_HOST_DEVICE void over_places(const Span& z, const Span& y, const Span& x, int32_t size_y, int32_t size_x,
                                     Visit&& visit) {
  FASTLRP_ROLLED
  for (int32_t i = 0; i < z.count; ++i) {
    const int32_t at_z = z.first + i * z.step;
    FASTLRP_ROLLED
    for (int32_t j = 0; j < y.count; ++j) {
      const int32_t at_y = y.first + j * y.step;
      FASTLRP_ROLLED
      for (int32_t k = 0; k < x.count; ++k) {
        const int32_t at_x = x.first + k * x.step;
        visit(static_cast<uint32_t>((at_z * size_y + at_y) * size_x + at_x), at_z, at_y, at_x);
      }
    }
  }
}

}  // namespace fastlrp
