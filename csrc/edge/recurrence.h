#pragma once

#include <tuple>

#include "tensors.h"

namespace fastlrp::edge {

// What comes to the inputs of all steps or, without their weight, to the gates (B, K, T, …); to the state before the
// first step, output (B, K, P) and memory (B, K, H); and what each step spreads (B, K, T), where it does.
struct RecurrenceTensors {
  Tensor flows, first, memory, sums;

  auto tuple() const { return std::tuple{flows, first, memory, sums}; }
};

RecurrenceTensors recurrence_relevance(const Tensor& relevance, const OptionalTensor& final, const Tensor& weight,
                                       const Tensor& entry, const OptionalTensor& scale, const OptionalTensor& carry,
                                       const OptionalTensor& gates, const OptionalTensor& output_entry,
                                       const OptionalTensor& output_scale, const OptionalTensor& reset,
                                       const OptionalTensor& projection, const OptionalTensor& input_weight,
                                       const OptionalTensor& spread);

}  // namespace fastlrp::edge
