#pragma once

#include <cstdint>

#include "../common/axis.h"
#include "../common/rule.h"
#include "device.h"

namespace fastlrp::cuda {

using fastlrp::Rule;
template <class T>
using Coefficients = CoefficientsOf<T, Accumulate<T>>;

// In one sweep.
template <class T>
void elementwise_coefficients(Rule rule, const Coefficients<T>& p, Stream stream);

// A layer, its ReLU and a max-pool in one sweep: the coefficients of z with the factor a = max(z, 0), the maximum of a
// in each window and where it is, flat in the input. As in PyTorch the first of equals wins, the last NaN before all,
// and a window without inputs has -inf. Dense maps: (B, C, inputs) or, channels last, (B, inputs, C).
template <class T>
struct PooledCoefficients {
  const T* z;         // (B, C, inputs)
  const T* positive;  // as z, or null where the rule does not read it
  const T* negative;
  T* pooled;       // (B, C, outputs)
  int64_t* index;  // (B, C, outputs)
  T* u;            // as z, or null where the rule does not make it
  T* v;
  int64_t B, C;  // C times inputs, C times outputs are below 2^31
  bool channels_last;
  Axis axes[3];  // axes that a map lacks come first
  Accumulate<T> alpha, epsilon;
};

template <class T>
void elementwise_pooled_coefficients(Rule rule, const PooledCoefficients<T>& p, Stream stream);

}  // namespace fastlrp::cuda
