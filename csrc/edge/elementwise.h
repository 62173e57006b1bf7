#pragma once

#include <string>
#include <tuple>

#include "tensors.h"

namespace fastlrp::edge {

std::tuple<OptionalTensor, OptionalTensor> elementwise_coefficients(const at::Tensor& z, const OptionalTensor& positive,
                                                                    const OptionalTensor& negative,
                                                                    const OptionalTensor& factor,
                                                                    const std::string& rule_name, double alpha,
                                                                    double epsilon);

}  // namespace fastlrp::edge
