#include "elementwise.h"

#include "../common/memory.h"
#include "../cpu/elementwise.h"
#include "elementwise_arguments.h"

namespace fastlrp::edge {

CoefficientTensors elementwise_coefficients(const Tensor& z, const OptionalTensor& positive,
                                            const OptionalTensor& negative, const OptionalTensor& factor_,
                                            const std::string& rule, double alpha, double epsilon) {
  CoefficientArguments a({kCpu, "elementwise_coefficients"}, z, rule);
  a.z = a.z.is_non_overlapping_and_dense() ? a.z : a.z.contiguous();
  a.take(positive, negative);
  const Tensor factor = a.like_z("factor", factor_, factor_.has_value());
  for (const OptionalTensor& made : {a.u, a.v}) {
    if (made.has_value()) {
      prefer_huge_pages(made->mutable_data_ptr(), made->nbytes());
    }
  }
  const auto launch = [&](auto zero) {
    using T = decltype(zero);
    const auto read = [](const Tensor& t) { return t.defined() ? t.const_data_ptr<T>() : nullptr; };
    const auto write = [](const OptionalTensor& t) { return t.has_value() ? t->mutable_data_ptr<T>() : nullptr; };
    cpu::elementwise_coefficients<T>(a.rule, {read(a.z), read(a.positive), read(a.negative), read(factor), write(a.u),
                                              write(a.v), a.z.numel(), static_cast<T>(alpha), static_cast<T>(epsilon)});
  };
  a.z.scalar_type() == kFloat ? launch(0.0f) : launch(0.0);
  return {a.u, a.v};
}

}  // namespace fastlrp::edge
