#pragma once

#include <cstdint>

#include "../common/axis.h"
#include "device.h"

// Relevance of a network's input, where channels are few. Sums are made in one order, in float or double: the result is
// the same each time. Strides are in elements; axes are z, y, x, those that a map lacks come first.

namespace fastlrp::cuda {

constexpr int kMostTerms = 3;

// out = sum over the terms j of multiplier_j * W_j^T (u_j F), or its sum over channels.
template <class T>
struct InputRelevance {
  const T* relevance;                  // F, (B, K, Co, outputs)
  int64_t strides[6];                  // of relevance: b, k, c, z, y, x
  const T* coefficients[kMostTerms];   // u, those that are different, each (B, Co, outputs)
  int64_t coefficient_strides[5];      // b, c, z, y, x, of all
  const T* weights[kMostTerms];        // W_j, (Co, Ci, taps) dense
  const T* multipliers[kMostTerms];    // (B, Ci, inputs), or null for 1
  int64_t multiplier_strides[5];       // of all that are not null
  int32_t coefficient_of[kMostTerms];  // of each term, below coefficient_count
  int32_t terms, coefficient_count;
  T* out;  // (B, K, inputs, Ci) dense, with reduce (B, K, inputs), uninitialised
  int64_t B, K, Co, Ci;
  Axis axes[3];  // inputs, outputs and the convolution's geometry; the products of each are below 2^31
  bool reduce;
};

// Nothing of it is 0. Throws std::runtime_error if it cannot be launched.
template <class T>
void input_relevance(const InputRelevance<T>& p, Stream stream);

// out[b, k, i, c] = factor * sum over the outputs o of which a tap stands at i, and their channels, of u F.
template <class T>
struct InputFlat {
  const T* relevance;  // F, (B, K, Co, outputs)
  int64_t strides[6];
  const T* u;  // (B, Co, outputs)
  int64_t u_strides[5];
  Accumulate<T>* summed;  // (B, K, outputs) scratch
  T* out;                 // (B, K, inputs, channels) dense, uninitialised
  int64_t B, K, Co, channels;
  Axis axes[3];
  double factor;
};

template <class T>
void input_flat_relevance(const InputFlat<T>& p, Stream stream);

}  // namespace fastlrp::cuda
