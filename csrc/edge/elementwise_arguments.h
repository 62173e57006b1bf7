// The arguments of coefficients, checked, for the kernels of any device.
#pragma once

#include <string>

#include "../common/rule.h"
#include "tensors.h"

namespace fastlrp::edge {

// z and what goes with it. Once z is in dense memory, take() brings the others into its order of elements, with a copy
// only for those that have another, and makes room for the results.
struct CoefficientArguments {
  Check check;
  std::string name;  // of the rule
  Rule rule;
  Tensor z, positive, negative;  // not defined where the rule does not read them
  OptionalTensor u, v;

  CoefficientArguments(const Check& check, const Tensor& z, const std::string& rule);

  // subtracts: whether the kernel takes z - positive where negative is not given.
  void take(const OptionalTensor& positive, const OptionalTensor& negative, bool subtracts = false);
  Tensor like_z(const char* argument, const OptionalTensor& tensor, bool needed) const;
};

}  // namespace fastlrp::edge
