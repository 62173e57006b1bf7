// What the CUDA kernels of shared sparsity are given.
#pragma once

#include "../../cuda/sparse.h"
#include "../sparse_arguments.h"
#include "device.h"

namespace fastlrp::edge::cuda {

namespace kernels = fastlrp::cuda;

// (entries, targets rounded up to whole vectors).
inline Tensor new_rows(int64_t entries, int64_t targets, const Tensor& like) {
  return empty({entries, round_up(targets, kLanes)}, like);
}

// All of a window's numbers were checked to be below 2^31.
inline kernels::Window narrowed(const WindowOf<int64_t>& wide) {
  kernels::Window w{};
  for (int axis = 0; axis < 3; ++axis) {
    w.in[axis] = static_cast<int32_t>(wide.in[axis]), w.out[axis] = static_cast<int32_t>(wide.out[axis]);
    w.taps[axis] = static_cast<int32_t>(wide.taps[axis]), w.stride[axis] = static_cast<int32_t>(wide.stride[axis]);
    w.padding[axis] = static_cast<int32_t>(wide.padding[axis]);
    w.dilation[axis] = static_cast<int32_t>(wide.dilation[axis]);
  }
  w.transposed = wide.transposed;
  return w;
}

}  // namespace fastlrp::edge::cuda
