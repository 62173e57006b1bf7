#pragma once

#include <cstdint>

namespace fastlrp::cpu {

// Winner-take-all max-pool: out[b, k, c, index[b, c, o]] += relevance[b, k, c, o] * scale[b, c, o], out zero elsewhere.
// Windows may overlap. Spatial axes are flattened: `outputs` positions of the pool's output, `inputs` of its input.
// Throws std::out_of_range for an index outside [0, inputs).
template <class T>
struct PoolMax {
  const T* relevance;  // (B, K, C, outputs), (B, K, outputs, C) when channels last
  int64_t stride_b;    // of relevance, in elements
  int64_t stride_k;
  int64_t stride_c;      // not read when channels last: there it is 1
  const int64_t* index;  // (B, C, outputs), (B, outputs, C)
  const T* scale;        // as index, or null for 1
  T* out;                // (B, K, C, inputs), (B, K, inputs, C), uninitialised
  int64_t B, K, C, outputs, inputs;
};

template <class T>
void pool_max_relevance(const PoolMax<T>& p);

template <class T>
void pool_max_relevance_channels_last(const PoolMax<T>& p);

}  // namespace fastlrp::cpu
