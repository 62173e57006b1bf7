#pragma once

#include <cstdint>

#include "../common/bf16.h"
#include "../common/rule.h"

namespace fastlrp::cpu {

using fastlrp::Rule;
template <class T>
using Coefficients = CoefficientsOf<T, T>;

template <class T>
void elementwise_coefficients(Rule rule, const Coefficients<T>& p);

// The same by the thread that calls it, for a part of the elements that is in its cache.
void coefficients_of_row(Rule rule, const Coefficients<float>& p);

// out[b, k, i] = relevance[b, k, i] * coefficient[b, i] with float's product, for i < count.
template <class From>
struct Scaled {
  const From* relevance;
  const float* coefficient;
  Bf16* out;
  int64_t batch, targets, count;
};

template <class From>
void elementwise_scaled(const Scaled<From>& p);

// y = first + second, where that is not below zero, else 0; share = y / (y + epsilon), and 0 where y is. What is not a
// number stays so.
struct RectifiedSum {
  const float* first;
  const float* second;
  float* y;
  float* share;  // or null
  int64_t count;
  float epsilon;
};

void elementwise_rectified_sum(const RectifiedSum& p);

}  // namespace fastlrp::cpu
