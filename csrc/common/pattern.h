#pragma once

#include <cstdint>

#include "host_device.h"

// Index arithmetic of patterns of alive neurons, the same for the CPU's kernels and the GPU's.

namespace fastlrp {

template <class N>
FASTLRP_HOST_DEVICE N least(N a, N b) {
  return a < b ? a : b;
}

// The first entry in [begin, end) whose channel is not below `channel`, or `end`; channels ascend.
FASTLRP_HOST_DEVICE int64_t first_not_below(const int32_t* channels, int64_t begin, int64_t end, int32_t channel) {
  while (begin < end) {
    const int64_t middle = begin + (end - begin) / 2;
    if (channels[middle] < channel) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  return begin;
}

// The entry in [begin, end) of a channel, or -1.
FASTLRP_HOST_DEVICE int64_t entry_of(const int32_t* channels, int64_t begin, int64_t end, int32_t channel) {
  const int64_t entry = first_not_below(channels, begin, end, channel);
  return entry < end && channels[entry] == channel ? entry : -1;
}

// The position of an entry, 0 <= entry < offsets[positions].
FASTLRP_HOST_DEVICE int64_t position_of(const int64_t* offsets, int64_t positions, int64_t entry) {
  int64_t begin = 0, end = positions;  // offsets[begin] <= entry < offsets[end]
  while (end - begin > 1) {
    const int64_t middle = begin + (end - begin) / 2;
    if (offsets[middle] <= entry) {
      begin = middle;
    } else {
      end = middle;
    }
  }
  return begin;
}

// Whether an input can be in two windows; a Window has arrays of taps, stride and dilation for three axes.
template <class Window>
FASTLRP_HOST_DEVICE bool overlaps(const Window& w) {
  return w.taps[0] > w.stride[0] || w.taps[1] > w.stride[1] || w.taps[2] > w.stride[2] || w.dilation[0] > 1 ||
         w.dilation[1] > 1 || w.dilation[2] > 1;
}

}  // namespace fastlrp
