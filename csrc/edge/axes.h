// The spatial axes of maps, as kernels take them: three.
#pragma once

#include <array>

#include "../common/axis.h"
#include "tensors.h"

namespace fastlrp::edge {

// Three from make(number of the axis): those that a map lacks come first and are `one`, a window over one entry.
template <class Line, class Make>
std::array<Line, 3> three_axes(const Check& check, const char* name, const Tensor& of, size_t axes, const Line& one,
                               const Make& make) {
  REQUIRE_VALUE(axes <= 3, check.op, ": ", name, " must have one to three spatial axes, got ", of.sizes());
  std::array<Line, 3> made{one, one, one};
  for (size_t axis = 0; axis < axes; ++axis) {
    made[3 - axes + axis] = make(axis);
  }
  return made;
}

}  // namespace fastlrp::edge
