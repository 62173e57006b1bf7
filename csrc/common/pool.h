#pragma once

#include <cstdint>

namespace fastlrp {

// What every pool passes relevance through, on any device: from its outputs to its inputs, for B samples with K targets
// each. Spatial axes are flattened to positions. A sample's map is (C, positions), or (positions, C) when channels
// last.
template <class T>
struct PoolFlow {
  const T* relevance;          // (B, K, C, outputs) or (B, K, outputs, C)
  int64_t stride_b, stride_k;  // of relevance, in elements
  int64_t stride_c;            // read by the CPU's kernels only, and not when channels last; elsewhere maps are dense
  const T* scale;              // (B, C, outputs) or (B, outputs, C), or null for 1
  T* out;                      // (B, K, C, inputs) or (B, K, inputs, C), uninitialised
  int64_t B, K, C;
  int64_t outputs, inputs;  // positions
  bool channels_last;
};

}  // namespace fastlrp
