#pragma once

#include <cstdint>

#include "../common/axis.h"
#include "../common/pool.h"
#include "device.h"

// Relevance through pools for all targets in one launch. A sample's maps, and each target's of a sample, are dense:
// (C, positions), or (positions, C) when channels last. Sums are made in the order of the outputs, in float or double:
// the result is the same each time. Caches are read once for several targets, and every result is written once. C times
// outputs or inputs is below 2^31.

namespace fastlrp::cuda {

// Winner-take-all max-pool: out[b, k, c, index[b, c, o]] += relevance[b, k, c, o] * scale[b, c, o], out zero elsewhere.
// Windows may overlap. Relevance whose index is outside [0, inputs) is dropped: to report it the host would have to
// wait for the device.
template <class T>
struct PoolMax {
  PoolFlow<T> flow;
  const int64_t* index;  // (B, C, outputs) or (B, outputs, C)
  int32_t* scratch;      // pool_max_scratch numbers
};

int64_t pool_max_scratch(int64_t B, int64_t C, int64_t outputs, int64_t inputs);

template <class T>
void pool_max_relevance(const PoolMax<T>& p, Stream stream);

// The transpose of an average: out[b, k, c, i] = sum over the windows o that hold i of
// relevance[b, k, c, o] * scale[b, c, o] * factor / what o divides by. Axes that a map lacks come first.
template <class T>
struct PoolAvg {
  PoolFlow<T> flow;
  Axis axes[3];
  bool divides;  // by what the window averages over; else by nothing
  bool count_include_pad;
  double factor;
};

template <class T>
void pool_avg_relevance(const PoolAvg<T>& p, Stream stream);

template <class T>
struct PoolAdaptiveAvg {
  PoolFlow<T> flow;
  AdaptiveAxis axes[3];
};

template <class T>
void pool_adaptive_avg_relevance(const PoolAdaptiveAvg<T>& p, Stream stream);

// Ties in a max-pool: with share[b, c, o] = scale[b, c, o] / how many inputs of window o equal output[b, c, o],
// out[b, k, c, i] = sum over the windows o that hold i of relevance[b, k, c, o] * share[b, c, o] where
// input[b, c, i] == output[b, c, o].
template <class T>
struct PoolTies {
  PoolFlow<T> flow;
  const T* input;        // (B, C, inputs) or (B, inputs, C)
  const T* output;       // (B, C, outputs) or (B, outputs, C)
  Accumulate<T>* share;  // as output, uninitialised
  Axis axes[3];
};

template <class T>
void pool_ties_relevance(const PoolTies<T>& p, Stream stream);

}  // namespace fastlrp::cuda
