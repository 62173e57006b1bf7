#pragma once

#include <tuple>

#include "tensors.h"

namespace fastlrp::edge {

// What comes to queries (B, K, H, S, D), keys (B, K, G, T, D) and values (B, K, G, T, E).
struct AttentionTensors {
  Tensor query, key, value;

  auto tuple() const { return std::tuple{query, key, value}; }
};

AttentionTensors attention_relevance(const Tensor& relevance, const Tensor& query, const Tensor& key,
                                     const Tensor& value, const Tensor& output, const Tensor& log_sum,
                                     const OptionalTensor& mask, bool causal, double scale, double cap,
                                     double share_query, double share_key, double share_value, double epsilon);

// The same, written to memory that is given: parts of one larger result, whatever their strides.
void attention_relevance_into(const Tensor& c_query, const Tensor& c_key, const Tensor& c_value,
                              const Tensor& relevance, const Tensor& query, const Tensor& key, const Tensor& value,
                              const Tensor& output, const Tensor& log_sum, const OptionalTensor& mask, bool causal,
                              double scale, double cap, double share_query, double share_key, double share_value,
                              double epsilon);

Tensor attention_value_relevance(const Tensor& relevance, const Tensor& query, const Tensor& key, const Tensor& log_sum,
                                 const OptionalTensor& mask, bool causal, double scale, double cap);

}  // namespace fastlrp::edge
