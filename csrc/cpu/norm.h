// Relevance through norms whose sigma is held fixed.
#pragma once

#include <cstdint>

namespace fastlrp::cpu {

template <class T>
struct Norm {
  int64_t batch, targets, rows, size;  // B, K, positions, N
  const T* relevance;                  // (B, K, rows, N)
  const T* gain;                       // null, (N), or (B, rows, N)
  bool gain_by_row;                    // the last of these
  const T* inverse_sigma;              // (B, rows)
  bool centre;
  T* result;  // (B, K, rows, N)
};

// c = gain g / sigma, less its mean over N where the norm has one.
template <class T>
void norm_relevance(const Norm<T>& p);

}  // namespace fastlrp::cpu
