#include "elementwise.h"

#include <ATen/ops/empty_strided.h>

#include "../common/memory.h"
#include "../cpu/elementwise.h"

namespace fastlrp::edge {
namespace {

at::Tensor empty_like_order(const at::Tensor& z) {
  at::Tensor result = at::empty_strided(z.sizes(), z.strides(), z.options());
  prefer_huge_pages(result.mutable_data_ptr(), result.nbytes());
  return result;
}

cpu::Rule parse_rule(const std::string& rule) {
  if (rule == "epsilon") {
    return cpu::Rule::epsilon;
  }
  if (rule == "zplus") {
    return cpu::Rule::zplus;
  }
  TORCH_CHECK_VALUE(rule == "gamma", "elementwise_coefficients: rule must be 'epsilon', 'zplus' or 'gamma', got '",
                    rule, "'");
  return cpu::Rule::gamma;
}

}  // namespace

std::tuple<OptionalTensor, OptionalTensor> elementwise_coefficients(
    const at::Tensor& z_, const OptionalTensor& positive, const OptionalTensor& negative, const OptionalTensor& factor,
    const std::string& rule_name, double alpha, double epsilon) {
  constexpr const char* op = "elementwise_coefficients";
  const cpu::Rule rule = parse_rule(rule_name);
  check_cpu(op, "z", z_);
  check_float(op, "z", z_);
  at::Tensor z = z_.resolve_neg();
  z = z.is_non_overlapping_and_dense() ? z : z.contiguous();

  // All in z's own order of elements; a copy only for those that have another.
  const auto like_z = [&](const char* name, const OptionalTensor& tensor, bool needed) -> at::Tensor {
    if (!tensor.has_value()) {
      TORCH_CHECK_VALUE(!needed, op, ": rule '", rule_name, "' needs ", name, ", got None");
      return {};
    }
    check_cpu(op, name, *tensor);
    check_dtype(op, name, *tensor, z.scalar_type());
    check_sizes(op, name, *tensor, z.sizes());
    if (!needed) {
      return {};
    }
    const at::Tensor resolved = tensor->resolve_neg();
    return resolved.strides() == z.strides() ? resolved
                                             : at::empty_strided(z.sizes(), z.strides(), z.options()).copy_(resolved);
  };
  const bool is_epsilon = rule == cpu::Rule::epsilon, is_zplus = rule == cpu::Rule::zplus;
  const at::Tensor p = like_z("positive", positive, !is_epsilon);
  const at::Tensor n = like_z("negative", negative, rule == cpu::Rule::gamma);
  const at::Tensor f = like_z("factor", factor, factor.has_value());
  OptionalTensor u, v;
  if (!is_zplus) {
    u = empty_like_order(z);
  }
  if (!is_epsilon) {
    v = empty_like_order(z);
  }

  const auto launch = [&](auto zero) {
    using T = decltype(zero);
    const auto read = [](const at::Tensor& t) { return t.defined() ? t.const_data_ptr<T>() : nullptr; };
    const auto write = [](const OptionalTensor& t) { return t.has_value() ? t->mutable_data_ptr<T>() : nullptr; };
    cpu::elementwise_coefficients<T>(rule, {read(z), read(p), read(n), read(f), write(u), write(v), z.numel(),
                                            static_cast<T>(alpha), static_cast<T>(epsilon)});
  };
  z.scalar_type() == at::kFloat ? launch(0.0f) : launch(0.0);
  return {u, v};
}

}  // namespace fastlrp::edge
