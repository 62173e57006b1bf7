#include "elementwise_arguments.h"

namespace fastlrp::edge {
namespace {

// Whether the elements of both stand in one order: the stride of an axis of one entry says nothing.
bool same_order(const Tensor& first, const Tensor& second) {
  for (int64_t axis = 0; axis < first.dim(); ++axis) {
    if (first.size(axis) > 1 && first.stride(axis) != second.stride(axis)) {
      return false;
    }
  }
  return true;
}

}  // namespace

CoefficientArguments::CoefficientArguments(const Check& check_, const Tensor& z_, const std::string& rule_)
    : check(check_), name(rule_) {
  REQUIRE_VALUE(name == "epsilon" || name == "zplus" || name == "gamma", check.op,
                ": rule must be 'epsilon', 'zplus' or 'gamma', got '", name, "'");
  rule = name == "epsilon" ? Rule::epsilon : (name == "zplus" ? Rule::zplus : Rule::gamma);
  check.values("z", z_);
  z = z_.resolve_neg();
}

void CoefficientArguments::take(const OptionalTensor& positive_, const OptionalTensor& negative_, bool subtracts) {
  positive = like_z("positive", positive_, rule != Rule::epsilon);
  if (negative_.has_value() || !subtracts) {
    negative = like_z("negative", negative_, rule == Rule::gamma);
  }
  if (rule != Rule::zplus) {
    u = empty_strided(z.sizes(), z.strides(), z);
  }
  if (rule != Rule::epsilon) {
    v = empty_strided(z.sizes(), z.strides(), z);
  }
}

Tensor CoefficientArguments::like_z(const char* argument, const OptionalTensor& tensor, bool needed) const {
  if (!tensor.has_value()) {
    REQUIRE_VALUE(!needed, check.op, ": rule '", name, "' needs ", argument, ", got None");
    return {};
  }
  check.like(argument, *tensor, z);
  check.sizes(argument, *tensor, z.sizes());
  if (!needed) {
    return {};
  }
  const Tensor resolved = tensor->resolve_neg();
  return same_order(resolved, z) ? resolved : empty_strided(z.sizes(), z.strides(), z).copy_(resolved);
}

}  // namespace fastlrp::edge
