#pragma once

#include <algorithm>
#include <cstdint>

#include "isa.h"

namespace fastlrp {

// Planes of contiguous memory laid side by side, [position][lane], because rows of one plane are often too short to be
// worked on one after another. One 64-byte vector of float32.
constexpr int64_t kPlanes = 16;

// to[i * kPlanes + lane] = from[lane * stride + i], times scale[lane * scale_stride + i] unless scale is null, for
// lane < planes; other lanes stay as they are.
template <class T>
FASTLRP_INLINE void pack_planes(const T* from, int64_t stride, const T* scale, int64_t scale_stride, int64_t planes,
                                int64_t size, T* __restrict to) {
  constexpr int64_t kBlock = 64;  // its lanes stay in the nearest cache
  for (int64_t begin = 0; begin < size; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, size);
    for (int64_t lane = 0; lane < planes; ++lane) {
      const T *plane = from + lane * stride, *by = scale == nullptr ? nullptr : scale + lane * scale_stride;
      for (int64_t i = begin; i < end; ++i) {
        to[i * kPlanes + lane] = by == nullptr ? plane[i] : plane[i] * by[i];
      }
    }
  }
}

// to[lane * stride + i] = from[i * kPlanes + lane] for lane < planes.
template <class T>
FASTLRP_INLINE void unpack_planes(const T* __restrict from, int64_t planes, int64_t size, T* __restrict to,
                                  int64_t stride) {
  for (int64_t lane = 0; lane < planes; ++lane) {
    for (int64_t i = 0; i < size; ++i) {
      to[lane * stride + i] = from[i * kPlanes + lane];
    }
  }
}

}  // namespace fastlrp
