// Feature maps (B, C, *S) and registers (B, K, C, *S) as kernels take them: the spatial axes numbered with one stride.
#pragma once

#include "tensors.h"

namespace fastlrp::edge {

inline int64_t round_up(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

// The map itself if the axes from `first_axis` on can be numbered with one stride, else a copy.
inline Tensor flattened(const Tensor& map, int64_t first_axis) {
  if (map.numel() == 0) {
    return map;
  }
  int64_t stride = -1, size = 1;  // a stride of 0 is that of an expanded axis
  for (int64_t axis = map.dim() - 1; axis >= first_axis; --axis) {
    if (map.size(axis) == 1) {
      continue;
    }
    if (stride >= 0 && map.stride(axis) != stride * size) {
      return map.contiguous();
    }
    stride = stride < 0 ? map.stride(axis) : stride;
    size *= map.size(axis);
  }
  return map;
}

inline int64_t position_stride(const Tensor& map, int64_t first_axis) {
  for (int64_t axis = map.dim() - 1; axis >= first_axis; --axis) {
    if (map.size(axis) != 1) {
      return map.stride(axis);
    }
  }
  return 1;
}

inline int64_t spatial_of(const Tensor& map, int64_t first_axis) { return product(map.sizes().slice(first_axis)); }

}  // namespace fastlrp::edge
