// The arguments of attention, checked, for the kernels of any device.
#pragma once

#include "tensors.h"

namespace fastlrp::edge {

// Once checked: tensors whose last axis is contiguous, log-sum-exps contiguous, the mask as large as the scores
// (without a copy), and room for results that lie in memory as the operands do.
struct AttentionArguments {
  Check check;
  int64_t batch, targets, heads, key_heads, rows, keys, size, value_size;  // B, K, H, G, S, T, D, E
  Tensor relevance, query, key, log_sum;
  Tensor value, output;  // not defined where they are not read
  OptionalTensor mask;

  AttentionArguments(const Check& check, const Tensor& relevance, const Tensor& query, const Tensor& key,
                     const Tensor& log_sum, const OptionalTensor& mask);

  void take(const Tensor& value, const Tensor& output);
  void number(const char* name, double value) const;    // not below 0
  Tensor room(const Tensor& like, int64_t size) const;  // (B, K, heads, rows of `like`, size)
  // That memory given for a result has the sizes (B, K, between, positions, last), and its last axis is contiguous.
  void given(const char* name, const Tensor& memory, int64_t between, int64_t positions, int64_t last) const;
};

}  // namespace fastlrp::edge
