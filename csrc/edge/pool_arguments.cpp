#include "pool_arguments.h"

namespace fastlrp::edge {

PoolArguments::PoolArguments(const Check& check_, const Tensor& relevance_, const OptionalTensor& scale_,
                             const Sizes& input_size_, int64_t dense_from)
    : check(check_), input_size(input_size_) {
  check.values("relevance", relevance_);
  REQUIRE_VALUE(relevance_.dim() >= 4, check.op, ": relevance must have shape (B, K, C, *S'), got ",
                relevance_.sizes());
  relevance = relevance_.resolve_neg();
  B = relevance.size(0), K = relevance.size(1), C = relevance.size(2);
  geometry("input_size", input_size, 0);
  geometry("the size of relevance", output_size(), 0);
  check.elements("input_size", C, input_size);
  check.elements("the size of relevance", C, output_size());
  outputs = product(output_size());
  inputs = product(input_size);
  // One entry for each channel is both: then lanes of channels are longer than rows.
  channels_last = channels_last_dense(relevance, 2) && (outputs == 1 || !contiguous_from(relevance, 3));
  if (!channels_last && !contiguous_from(relevance, dense_from)) {
    relevance = relevance.contiguous();
  }
  if (scale_.has_value()) {
    scale = cache("scale", *scale_, relevance.scalar_type(), output_size());
  }
}

void PoolArguments::geometry(const char* name, Ints values, int64_t least) const {
  check.axes(name, values, output_size().size(), "relevance", least);
}

Tensor PoolArguments::cache(const char* name, const Tensor& tensor, ScalarType dtype, Ints size) const {
  check.beside(name, tensor, relevance);
  check.dtype(name, tensor, dtype);
  check.sizes(name, tensor, with({B, C}, size));
  const Tensor resolved = tensor.resolve_neg();
  if (!channels_last) {
    return resolved.contiguous();
  }
  const bool dense = channels_last_dense(resolved, 1) && resolved.stride(0) == C * product(size);
  return dense ? resolved : to_channels_last(resolved);
}

Tensor PoolArguments::empty_out() const {
  Sizes memory{B, K};
  if (!channels_last) {
    memory.push_back(C);
  }
  memory = with(memory, input_size);
  if (channels_last) {
    memory.push_back(C);
  }
  const Tensor out = empty(memory, relevance);
  return channels_last ? out.movedim(-1, 2) : out;
}

namespace {

Sizes spatial_size(const Check& check, const Tensor& input, const Tensor& relevance) {
  check.tensor("relevance", relevance);
  check.tensor("input", input);
  REQUIRE_VALUE(input.dim() >= 3 && input.dim() == relevance.dim() - 1, check.op,
                ": input must have shape (B, C, *S) with as many axes in S as relevance has after (B, K, C), got ",
                input.sizes(), " and relevance ", relevance.sizes());
  return input.sizes().slice(2).vec();
}

}  // namespace

TiesArguments::TiesArguments(const Check& check, const Tensor& relevance, const Tensor& input_, const Tensor& output_,
                             const OptionalTensor& scale, const Sizes& kernel_size, const Sizes& stride,
                             const Sizes& padding, const Sizes& dilation, int64_t dense_from)
    : pool(check, relevance, scale, spatial_size(check, input_, relevance), dense_from) {
  const ScalarType dtype = pool.relevance.scalar_type();
  input = pool.cache("input", input_, dtype, pool.input_size);
  output = pool.cache("output", output_, dtype, pool.output_size());
  pool.geometry("kernel_size", kernel_size, 1);
  pool.geometry("stride", stride, 1);
  pool.geometry("padding", padding, 0);
  pool.geometry("dilation", dilation, 1);
}

void check_average(const PoolArguments& pool, const Sizes& kernel_size, const Sizes& stride, const Sizes& padding,
                   std::optional<int64_t> divisor_override) {
  pool.geometry("kernel_size", kernel_size, 1);
  pool.geometry("stride", stride, 1);
  pool.geometry("padding", padding, 0);
  REQUIRE_VALUE(divisor_override != 0, pool.check.op,
                ": divisor_override must not be 0; None divides by the size of the window");
}

OptionalTensor adaptive_view(const PoolArguments& pool) {
  const bool same_size = pool.output_size() == Ints(pool.input_size);
  if (pool.outputs != 1 && !same_size) {
    return std::nullopt;
  }
  const Tensor relevance = pool.relevance.call("detach");
  const Tensor flow =
      pool.scale.defined() ? relevance.call("mul", {pool.scale.call("detach").unsqueeze(1)}) : relevance;
  return same_size ? flow : flow.call("div", {pool.inputs}).expand(with({pool.B, pool.K, pool.C}, pool.input_size));
}

}  // namespace fastlrp::edge
