// Relevance through attention for a block of targets.
#pragma once

#include <cstdint>

#include "attention_kernel.h"

namespace fastlrp::cpu {

// Elements between neighbours along the axes before the last, whose neighbours are next to each other.
struct Strides {
  int64_t batch = 0, target = 0, head = 0, row = 0;

  int64_t at(int64_t b, int64_t k, int64_t h, int64_t s) const { return b * batch + k * target + h * head + s * row; }
};

template <class T>
struct Rows {
  T* data = nullptr;
  Strides strides;

  T* at(int64_t b, int64_t k, int64_t h, int64_t s) const { return data + strides.at(b, k, h, s); }
};

template <class T>
struct Attention {
  int64_t batch, targets, heads, key_heads, rows, keys, size, value_size;  // B, K, H, G, S, T, D, E
  Rows<const T> relevance, query, key, value, output;  // no value, no output: values' relevance alone
  const T* log_sum;                                    // (B, H, S)
  Mask kind;
  const void* mask;
  Strides mask_strides;
  int64_t mask_key;
  bool causal;
  T scale, cap, share_query, share_key, share_value, epsilon;
  Rows<T> c_query, c_key, c_value;  // c_value alone where there is no value
};

template <class T>
void attention_relevance(const Attention<T>& p);

}  // namespace fastlrp::cpu
