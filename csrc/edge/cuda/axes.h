// Sizes and geometry of pools, checked and as the kernels take them.
#pragma once

#include <array>
#include <limits>
#include <vector>

#include "../../common/axis.h"
#include "device.h"

namespace fastlrp::edge::cuda {

using Sizes = std::vector<int64_t>;

constexpr int64_t kBelow = int64_t{1} << 31;

// One entry for each spatial axis of `of`, from `least` on and below 2^31.
inline void check_axes(const char* op, const char* name, at::IntArrayRef values, size_t axes, const char* of,
                       int64_t least) {
  TORCH_CHECK_VALUE(values.size() == axes, op, ": ", name, " must have one entry per spatial axis of ", of, " (", axes,
                    "), got ", values);
  for (const int64_t value : values) {
    TORCH_CHECK_VALUE(value >= least, op, ": ", name, least == 0 ? " must not be negative" : " must be positive",
                      ", got ", values);
    TORCH_CHECK_VALUE(value < kBelow, op, ": ", name, " must be below 2^31, got ", values,
                      "; use backend='torch' for larger ones");
  }
}

// The product of numbers that are not negative, or 2^31 if it is not below that.
inline int64_t limited_product(at::IntArrayRef sizes) {
  int64_t result = 1;
  for (const int64_t size : sizes) {
    if (size == 0) {
      return 0;
    }
    result = result < kBelow && size < kBelow ? std::min(result * size, kBelow) : kBelow;
  }
  return result;
}

// Kernels number the elements of one sample's map with 32 bits.
inline void check_elements(const char* op, const char* name, int64_t channels, at::IntArrayRef size) {
  TORCH_CHECK_VALUE(limited_product({channels, limited_product(size)}) < kBelow, op, ": ", name,
                    " must leave fewer than 2^31 elements for one sample and target, got ", size, " for each of ",
                    channels, " channels; use backend='torch' for larger ones");
}

// Three from make(number of the axis): those that a map lacks come first and have one window over one entry.
template <class Line, class Make>
std::array<Line, 3> three_axes(const char* op, const char* name, const at::Tensor& of, size_t axes, const Make& make) {
  TORCH_CHECK_VALUE(axes <= 3, op, ": ", name, " must have one to three spatial axes, got ", of.sizes());
  std::array<Line, 3> made{};
  for (size_t axis = 0; axis < axes; ++axis) {
    made[3 - axes + axis] = make(axis);
  }
  return made;
}

}  // namespace fastlrp::edge::cuda
