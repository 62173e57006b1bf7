#pragma once

#include <tuple>

#include "tensors.h"

namespace fastlrp::edge {

std::tuple<at::Tensor, at::Tensor, at::Tensor> attention_relevance(
    const at::Tensor& relevance, const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const at::Tensor& output, const at::Tensor& log_sum, const OptionalTensor& mask, bool causal, double scale,
    double cap, double share_query, double share_key, double share_value, double epsilon);

at::Tensor attention_value_relevance(const at::Tensor& relevance, const at::Tensor& query, const at::Tensor& key,
                                     const at::Tensor& log_sum, const OptionalTensor& mask, bool causal, double scale,
                                     double cap);

}  // namespace fastlrp::edge
