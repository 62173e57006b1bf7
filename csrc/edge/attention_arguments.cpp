#include "attention_arguments.h"

#include "../common/memory.h"

namespace fastlrp::edge {
namespace {

Tensor rows(const Tensor& tensor) {
  const Tensor resolved = tensor.resolve_neg();
  return resolved.size(-1) <= 1 || resolved.stride(-1) == 1 ? resolved : resolved.contiguous();
}

}  // namespace

AttentionArguments::AttentionArguments(const Check& check_, const Tensor& relevance_, const Tensor& query_,
                                       const Tensor& key_, const Tensor& log_sum_, const OptionalTensor& mask_)
    : check(check_) {
  check.values("relevance", relevance_);
  REQUIRE_VALUE(relevance_.dim() == 5, check.op, ": relevance must have shape (B, K, H, S, E), got ",
                relevance_.sizes());
  check.like("query", query_, relevance_);
  REQUIRE_VALUE(query_.dim() == 4, check.op, ": query must have shape (B, H, S, D), got ", query_.sizes());
  check.like("key", key_, relevance_);
  REQUIRE_VALUE(key_.dim() == 4, check.op, ": key must have shape (B, G, T, D), got ", key_.sizes());
  batch = query_.size(0), heads = query_.size(1), rows = query_.size(2), size = query_.size(3);
  key_heads = key_.size(1), keys = key_.size(2), targets = relevance_.size(1), value_size = relevance_.size(4);
  check.sizes("relevance", relevance_, {batch, targets, heads, rows, value_size});
  check.sizes("key", key_, {batch, key_heads, keys, size});
  REQUIRE_VALUE(key_heads > 0 && heads % key_heads == 0, check.op,
                ": the number of heads of query must be a multiple of that of key, got ", heads, " and ", key_heads);
  check.like("log_sum", log_sum_, relevance_);
  check.sizes("log_sum", log_sum_, {batch, heads, rows});
  relevance = edge::rows(relevance_), query = edge::rows(query_), key = edge::rows(key_);
  log_sum = log_sum_.resolve_neg().contiguous();
  if (mask_.has_value()) {
    check.beside("mask", *mask_, relevance_);
    const ScalarType dtype = mask_->scalar_type();
    REQUIRE_TYPE(dtype == kBool || dtype == kFloat || dtype == relevance_.scalar_type(), check.op,
                 ": mask must be bool, float32 or ", relevance_.scalar_type(), ", got ", dtype);
    const Sizes whole{batch, heads, rows, keys};
    bool fits = mask_->dim() <= 4;
    for (int64_t axis = 1; fits && axis <= mask_->dim(); ++axis) {
      fits = mask_->size(-axis) == 1 || mask_->size(-axis) == whole[4 - axis];
    }
    REQUIRE_VALUE(fits, check.op, ": mask must broadcast to (B, H, S, T) = ", Ints(whole), ", got ", mask_->sizes());
    const Tensor numbers = mask_->resolve_neg();
    mask = (dtype == kBool ? numbers : numbers.to(relevance_.scalar_type())).expand(whole);
  }
}

void AttentionArguments::take(const Tensor& value_, const Tensor& output_) {
  check.like("value", value_, relevance);
  check.sizes("value", value_, {batch, key_heads, keys, value_size});
  check.like("output", output_, relevance);
  check.sizes("output", output_, {batch, heads, rows, value_size});
  value = edge::rows(value_), output = edge::rows(output_);
}

void AttentionArguments::number(const char* name, double value) const {
  REQUIRE_VALUE(value >= 0, check.op, ": ", name, " must be at least 0 (0 is none), got ", value);
}

void AttentionArguments::given(const char* name, const Tensor& memory, int64_t between, int64_t positions,
                               int64_t last) const {
  check.like(name, memory, relevance);
  check.sizes(name, memory, {batch, targets, between, positions, last});
  REQUIRE_VALUE(last <= 1 || memory.stride(4) == 1, check.op, ": the last axis of ", name,
                " must be contiguous, got the strides ", memory.strides());
}

Tensor AttentionArguments::room(const Tensor& like, int64_t last) const {
  const int64_t between = like.size(1), positions = like.size(2);
  const bool heads_last = between > 1 && positions > 1 && like.stride(1) < like.stride(2);
  const Tensor made =
      empty({batch, targets, heads_last ? positions : between, heads_last ? between : positions, last}, like);
  prefer_huge_pages(made.mutable_data_ptr(), made.nbytes());
  return heads_last ? made.transpose(2, 3) : made;
}

}  // namespace fastlrp::edge
