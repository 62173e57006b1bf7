// What the CPU's sparse functions allocate, and by which dtype they go.
#pragma once

#include <ATen/ops/empty.h>

#include <utility>

#include "tensors.h"

namespace fastlrp::edge {

// (entries, targets rounded up to whole vectors); large ones are from a pool.
at::Tensor new_rows(int64_t entries, int64_t targets, const at::TensorOptions& options);

template <class Launch>
void dispatch(const at::Tensor& values, Launch&& launch) {
  values.scalar_type() == at::kFloat ? launch(0.0f) : launch(0.0);
}

}  // namespace fastlrp::edge
