// Relevance through the steps of one layer and direction of a recurrent network, for a block of targets.
#pragma once

#include <cstdint>

namespace fastlrp::cpu {

// All contiguous; null where there is none. See fastlrp/reference/recurrence.py for what they are.
template <class T>
struct Recurrence {
  int64_t batch, targets, steps, hidden, size;  // B, K, T, P, H
  int64_t gates, blocks, output_blocks;         // G, J, O
  int64_t channels, spreads;                    // C of the input's weight, rows of `spread`
  const T* relevance;                           // (B, K, T, P)
  const T* final;                               // (B, K, H)
  const T* weight;                              // (J H, P)
  const T* entry;                               // (B, T, P)
  const T* scale;                               // (B, T, P)
  const T* carry;                               // (B, T, H)
  const T* gate;                                // (B, T, G, H)
  const T* output_entry;                        // (B, T, H)
  const T* output_scale;                        // (B, T, H), with a projection (B, T, O, H)
  const T* reset;                               // (B, T, H)
  const T* projection;                          // (P, H)
  const T* input_weight;                        // (J H, C)
  const T* spread;                              // (B, T, 3 or 4, H)
  T* flows;                                     // (B, K, T, C) with the input's weight, else (B, K, T, J H)
  T* first;                                     // (B, K, P)
  T* memory;                                    // (B, K, H)
  T* spread_sums;                               // (B, K, T), with `spread`
};

template <class T>
void recurrence_relevance(const Recurrence<T>& p);

}  // namespace fastlrp::cpu
