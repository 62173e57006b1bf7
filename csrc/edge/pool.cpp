#include "pool.h"

#include <ATen/ops/empty.h>

#include "../common/memory.h"
#include "../cpu/pool.h"
#include "tensors.h"

namespace fastlrp::edge {

at::Tensor pool_max_relevance(const at::Tensor& relevance_, const at::Tensor& index_, const OptionalTensor& scale_,
                              const std::vector<int64_t>& input_size) {
  constexpr const char* op = "pool_max_relevance";
  check_cpu(op, "relevance", relevance_);
  check_cpu(op, "index", index_);
  check_float(op, "relevance", relevance_);
  check_dtype(op, "index", index_, at::kLong);
  TORCH_CHECK_VALUE(relevance_.dim() >= 4, op, ": relevance must have shape (B, K, C, *S'), got ", relevance_.sizes());
  TORCH_CHECK_VALUE(static_cast<int64_t>(input_size.size()) == relevance_.dim() - 3, op,
                    ": input_size must have one entry per spatial axis of relevance (", relevance_.dim() - 3, "), got ",
                    at::IntArrayRef(input_size));
  const int64_t B = relevance_.size(0), K = relevance_.size(1), C = relevance_.size(2);
  std::vector<int64_t> cache_size{B, C};
  int64_t outputs = 1, inputs = 1;
  for (size_t axis = 0; axis < input_size.size(); ++axis) {
    TORCH_CHECK_VALUE(input_size[axis] >= 0, op, ": input_size must not be negative, got ",
                      at::IntArrayRef(input_size));
    cache_size.push_back(relevance_.size(static_cast<int64_t>(axis) + 3));
    outputs *= cache_size.back();
    inputs *= input_size[axis];
  }
  check_sizes(op, "index", index_, cache_size);
  at::Tensor relevance = relevance_.resolve_neg(), index = index_, scale;
  if (scale_.has_value()) {
    check_cpu(op, "scale", *scale_);
    check_dtype(op, "scale", *scale_, relevance_.scalar_type());
    check_sizes(op, "scale", *scale_, cache_size);
    scale = scale_->resolve_neg();
  }

  // The relevance, by far the largest, decides the layout; its first axes may have any strides.
  const bool channels_last = !contiguous_from(relevance, 3) && channels_last_dense(relevance, 2);
  std::vector<int64_t> out_size{B, K, C};
  out_size.insert(out_size.end(), input_size.begin(), input_size.end());
  at::Tensor out;
  if (channels_last) {
    index = channels_last_dense(index, 1) && index.stride(0) == C * outputs ? index : to_channels_last(index);
    if (scale.defined() && !(channels_last_dense(scale, 1) && scale.stride(0) == C * outputs)) {
      scale = to_channels_last(scale);
    }
    std::vector<int64_t> memory{B, K};
    memory.insert(memory.end(), input_size.begin(), input_size.end());
    memory.push_back(C);
    out = at::empty(memory, relevance.options()).movedim(-1, 2);
  } else {
    relevance = contiguous_from(relevance, 3) ? relevance : relevance.contiguous();
    index = index.contiguous();
    scale = scale.defined() ? scale.contiguous() : scale;
    out = at::empty(out_size, relevance.options());
  }
  prefer_huge_pages(out.mutable_data_ptr(), out.nbytes());

  const auto launch = [&](auto zero) {
    using T = decltype(zero);
    const cpu::PoolMax<T> p{relevance.const_data_ptr<T>(),
                            relevance.stride(0),
                            relevance.stride(1),
                            relevance.stride(2),
                            index.const_data_ptr<int64_t>(),
                            scale.defined() ? scale.const_data_ptr<T>() : nullptr,
                            out.mutable_data_ptr<T>(),
                            B,
                            K,
                            C,
                            outputs,
                            inputs};
    return channels_last ? cpu::pool_max_relevance_channels_last(p) : cpu::pool_max_relevance(p);
  };
  relevance.scalar_type() == at::kFloat ? launch(0.0f) : launch(0.0);
  return out;
}

}  // namespace fastlrp::edge
