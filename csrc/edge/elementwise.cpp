#include "elementwise.h"

#include <algorithm>

#include "../common/memory.h"
#include "../cpu/elementwise.h"
#include "elementwise_arguments.h"

namespace fastlrp::edge {

CoefficientTensors elementwise_coefficients(const Tensor& z, const OptionalTensor& positive,
                                            const OptionalTensor& negative, const OptionalTensor& factor_,
                                            const std::string& rule, double alpha, double epsilon) {
  CoefficientArguments a({kCpu, "elementwise_coefficients"}, z, rule);
  a.z = a.z.is_non_overlapping_and_dense() ? a.z : a.z.contiguous();
  a.take(positive, negative, true);
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

namespace {

// Relevance with the strides that the coefficient has within a sample: samples and targets one after the other.
Tensor laid_out_like(const Tensor& relevance, const Tensor& coefficient) {
  Sizes strides(relevance.dim());
  const int64_t count = coefficient.numel() / std::max<int64_t>(1, coefficient.size(0));
  strides[0] = relevance.size(1) * count, strides[1] = count;
  std::copy(coefficient.strides().begin() + 1, coefficient.strides().end(), strides.begin() + 2);
  for (int64_t axis = 0; axis < relevance.dim(); ++axis) {
    if (relevance.size(axis) > 1 && relevance.stride(axis) != strides[axis]) {
      return empty_strided(relevance.sizes(), strides, relevance).copy_(relevance);
    }
  }
  return relevance.call("as_strided", {relevance.sizes().vec(), strides});
}

}  // namespace

Tensor elementwise_scaled(const Tensor& relevance_, const Tensor& coefficient_) {
  const Check check{kCpu, "elementwise_scaled"};
  check.dtype("coefficient", coefficient_, kFloat);
  check.beside("coefficient", coefficient_, relevance_);
  const ScalarType dtype = relevance_.scalar_type();
  REQUIRE_VALUE(relevance_.is_cpu() && (dtype == kFloat || dtype == kBFloat16), check.op,
                ": relevance must be of float32 or bfloat16 on the CPU, got ", dtype, " on ", relevance_.device());
  REQUIRE_VALUE(relevance_.dim() >= 2, check.op, ": relevance must have shape (B, K, *S), got ", relevance_.sizes());
  Sizes expected = relevance_.sizes().vec();
  expected.erase(expected.begin() + 1);
  check.sizes("coefficient", coefficient_, expected);
  const Tensor resolved = coefficient_.resolve_neg();
  const int64_t samples = resolved.size(0), count = resolved.numel() / std::max<int64_t>(1, samples);
  const bool whole = resolved.is_non_overlapping_and_dense() && (samples < 2 || resolved.stride(0) == count);
  const Tensor coefficient = whole ? resolved : resolved.contiguous();
  const Tensor relevance = laid_out_like(relevance_.resolve_neg(), coefficient);
  const Tensor out = empty_strided(relevance.sizes(), relevance.strides(), relevance, kBFloat16);
  if (out.numel() == 0) {
    return out;
  }
  prefer_huge_pages(out.mutable_data_ptr(), out.nbytes());
  const float* factor = coefficient.const_data_ptr<float>();
  Bf16* to = static_cast<Bf16*>(out.mutable_data_ptr());
  if (dtype == kFloat) {
    cpu::elementwise_scaled<float>({relevance.const_data_ptr<float>(), factor, to, samples, relevance.size(1), count});
  } else {
    cpu::elementwise_scaled<Bf16>(
        {static_cast<const Bf16*>(relevance.const_data_ptr()), factor, to, samples, relevance.size(1), count});
  }
  return out;
}

std::tuple<Tensor, OptionalTensor> elementwise_rectified_sum(const Tensor& first, const Tensor& second,
                                                             std::optional<double> epsilon) {
  const Check check{kCpu, "elementwise_rectified_sum"};
  check.dtype("first", first, kFloat);
  check.tensor("first", first);
  check.like("second", second, first);
  check.sizes("second", second, first.sizes());
  REQUIRE_VALUE(first.is_non_overlapping_and_dense() && first.strides() == second.strides(), check.op,
                ": first and second must lie in memory alike and without gaps, got strides ", first.strides(), " and ",
                second.strides());
  const Tensor a = first.resolve_neg(), b = second.resolve_neg();
  const auto made = [&] {
    const Tensor tensor = empty_strided(a.sizes(), a.strides(), a);
    prefer_huge_pages(tensor.mutable_data_ptr(), tensor.nbytes());
    return tensor;
  };
  const Tensor y = made();
  const OptionalTensor share = epsilon.has_value() ? OptionalTensor(made()) : OptionalTensor();
  cpu::elementwise_rectified_sum({a.const_data_ptr<float>(), b.const_data_ptr<float>(), y.mutable_data_ptr<float>(),
                                  share.has_value() ? share->mutable_data_ptr<float>() : nullptr, a.numel(),
                                  static_cast<float>(epsilon.value_or(0.0))});
  return {y, share};
}

}  // namespace fastlrp::edge
