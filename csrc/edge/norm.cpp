#include "norm.h"

#include "../common/memory.h"
#include "../cpu/norm.h"
#include "require.h"

namespace fastlrp::edge {

Tensor norm_relevance(const Tensor& relevance_, const OptionalTensor& gain_, const Tensor& inverse_sigma, bool centre) {
  const Check check{kCpu, "norm_relevance"};
  check.values("relevance", relevance_);
  REQUIRE_VALUE(relevance_.dim() >= 3, check.op, ": relevance must have shape (B, K, *L, N), got ", relevance_.sizes());
  check.like("inverse_sigma", inverse_sigma, relevance_);
  Sizes sample = relevance_.sizes().vec();  // (B, *L, N)
  sample.erase(sample.begin() + 1);
  Sizes rows = sample;
  rows.back() = 1;
  check.sizes("inverse_sigma", inverse_sigma, rows);
  const Tensor relevance = relevance_.resolve_neg().contiguous(), inverse = inverse_sigma.resolve_neg().contiguous();
  Tensor gain;
  bool by_row = false;
  if (gain_.has_value()) {
    check.like("gain", *gain_, relevance_);
    const int64_t size = sample.back();
    bool fits = gain_->dim() >= 1 && gain_->dim() <= static_cast<int64_t>(sample.size());
    for (int64_t axis = 1; fits && axis <= gain_->dim(); ++axis) {
      fits = gain_->size(-axis) == 1 || gain_->size(-axis) == sample[sample.size() - axis];
    }
    REQUIRE_VALUE(fits, check.op, ": gain must broadcast to (B, *L, N) = ", Ints(sample), ", got ", gain_->sizes());
    by_row = gain_->numel() != size || gain_->size(-1) != size;
    gain = (by_row ? gain_->resolve_neg().expand(sample) : gain_->resolve_neg()).contiguous();
  }
  const Tensor result = empty_like(relevance);
  prefer_huge_pages(result.mutable_data_ptr(), result.nbytes());
  if (relevance.numel() == 0) {
    return result;
  }
  const auto launch = [&](auto zero) {
    using T = decltype(zero);
    const int64_t batch = relevance.size(0), targets = relevance.size(1), size = relevance.size(-1);
    cpu::norm_relevance<T>({batch, targets, relevance.numel() / (batch * targets * size), size,
                            relevance.const_data_ptr<T>(), gain.defined() ? gain.const_data_ptr<T>() : nullptr, by_row,
                            inverse.const_data_ptr<T>(), centre, result.mutable_data_ptr<T>()});
  };
  relevance.scalar_type() == kFloat ? launch(0.0f) : launch(0.0);
  return result;
}

}  // namespace fastlrp::edge
