#pragma once

#include "device.h"

namespace fastlrp::cuda {

// The lanes below one, as a mask.
__device__ __forceinline__ unsigned lanes_below(int lane) { return (1u << lane) - 1; }

// The sum of `value` over the lanes before this one.
template <class N>
__device__ __forceinline__ N warp_scan(N value, int lane) {
  N sum = value;
  for (int step = 1; step < kWarp; step *= 2) {
    const N before = __shfl_up_sync(kAllLanes, sum, step);
    sum += lane >= step ? before : N(0);
  }
  return sum - value;
}

// The sum of `value` over the threads before this one, and over all of them. Every thread of the block calls it.
template <int warps, class N>
__device__ __forceinline__ N block_scan(N value, N* sums /* (warps), shared */, N& total) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  N before = warp_scan(value, lane);
  __syncthreads();  // the sums of the call before may still be read
  if (lane == kWarp - 1) {
    sums[warp] = before + value;
  }
  __syncthreads();
  total = 0;
  for (int w = 0; w < warps; ++w) {
    before += w < warp ? sums[w] : N(0);
    total += sums[w];
  }
  return before;
}

}  // namespace fastlrp::cuda
