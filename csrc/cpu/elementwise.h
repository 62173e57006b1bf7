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

}  // namespace fastlrp::cpu
