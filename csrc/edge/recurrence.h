#pragma once

#include <tuple>

#include "tensors.h"

namespace fastlrp::edge {

std::tuple<Tensor, Tensor, Tensor, Tensor> recurrence_relevance(
    const Tensor& relevance, const OptionalTensor& final, const Tensor& weight, const Tensor& entry,
    const OptionalTensor& scale, const OptionalTensor& carry, const OptionalTensor& gates,
    const OptionalTensor& output_entry, const OptionalTensor& output_scale, const OptionalTensor& reset,
    const OptionalTensor& projection, const OptionalTensor& input_weight, const OptionalTensor& spread);

}  // namespace fastlrp::edge
