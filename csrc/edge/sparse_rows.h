// What the CPU's sparse functions allocate, and by which dtype they go.
#pragma once

#include <utility>

#include "tensors.h"

namespace fastlrp::edge {

// (entries, targets rounded up to whole vectors); large ones are from a pool.
Tensor new_rows(int64_t entries, int64_t targets, const Tensor& like);

template <class Launch>
void dispatch(const Tensor& values, Launch&& launch) {
  values.scalar_type() == kFloat ? launch(0.0f) : launch(0.0);
}

}  // namespace fastlrp::edge
