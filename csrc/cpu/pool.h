#pragma once

#include <cstdint>

#include "../common/pool.h"
#include "../common/windows.h"

namespace fastlrp::cpu {

// Winner-take-all max-pool: out[b, k, c, index[b, c, o]] += relevance[b, k, c, o] * scale[b, c, o], out zero elsewhere.
// Windows may overlap. Throws std::out_of_range for an index outside [0, inputs).
template <class T>
struct PoolMax : PoolFlow<T> {
  const int64_t* index;  // (B, C, outputs), (B, outputs, C)
};

template <class T>
void pool_max_relevance(const PoolMax<T>& p);

// The transpose of an average: out[b, k, c, i] = sum over the windows o that hold i, in the order of o, of
// relevance[b, k, c, o] * scale[b, c, o] * factor * the weight of o along each axis.
template <class T>
struct PoolAvg : PoolFlow<T> {
  const Windows* axes;  // three; those that a map lacks come first, with one window over one entry
  double factor;
};

template <class T>
void pool_avg_relevance(const PoolAvg<T>& p);

// Ties in a max-pool: with share[b, c, o] = scale[b, c, o] / how many inputs of window o equal output[b, c, o],
// out[b, k, c, i] = sum over the windows o that hold i, in the order of o, of
// relevance[b, k, c, o] * share[b, c, o] where input[b, c, i] == output[b, c, o].
template <class T>
struct PoolTies : PoolFlow<T> {
  const T* input;       // (B, C, inputs), (B, inputs, C)
  const T* output;      // (B, C, outputs), (B, outputs, C)
  const Windows* axes;  // as in PoolAvg
};

template <class T>
void pool_ties_relevance(const PoolTies<T>& p);

}  // namespace fastlrp::cpu
