#include "pool.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>

#include <array>
#include <limits>

#include "../common/memory.h"
#include "../cpu/pool.h"
#include "tensors.h"

namespace fastlrp::edge {
namespace {

using Sizes = std::vector<int64_t>;

int64_t product(at::IntArrayRef sizes) {
  int64_t result = 1;
  for (const int64_t size : sizes) {
    result *= size;
  }
  return result;
}

// Arguments that every pool has, checked, in one memory order. The relevance, by far the largest, decides which; its
// first axes may have any strides.
struct Pool {
  const char* op;
  Sizes input_size;
  at::Tensor relevance, scale;
  int64_t B, K, C, outputs, inputs;
  bool channels_last;

  Pool(const char* op_, const at::Tensor& relevance_, const OptionalTensor& scale_, const Sizes& input_size_)
      : op(op_), input_size(input_size_) {
    check_cpu(op, "relevance", relevance_);
    check_float(op, "relevance", relevance_);
    TORCH_CHECK_VALUE(relevance_.dim() >= 4, op, ": relevance must have shape (B, K, C, *S'), got ",
                      relevance_.sizes());
    relevance = relevance_.resolve_neg();
    check_axes("input_size", input_size, 0);
    B = relevance.size(0), K = relevance.size(1), C = relevance.size(2);
    outputs = product(output_size());
    inputs = product(input_size);
    // One entry for each channel is both: then lanes of channels are longer than rows.
    channels_last = channels_last_dense(relevance, 2) && (outputs == 1 || !contiguous_from(relevance, 3));
    if (!channels_last && !contiguous_from(relevance, 3)) {
      relevance = relevance.contiguous();
    }
    if (scale_.has_value()) {
      scale = cache("scale", *scale_, relevance.scalar_type(), output_size());
    }
  }

  at::IntArrayRef output_size() const { return relevance.sizes().slice(3); }

  void check_axes(const char* name, at::IntArrayRef values, int64_t least) const {
    TORCH_CHECK_VALUE(values.size() == output_size().size(), op, ": ", name,
                      " must have one entry per spatial axis of relevance (", output_size().size(), "), got ", values);
    for (const int64_t value : values) {
      TORCH_CHECK_VALUE(value >= least, op, ": ", name, least == 0 ? " must not be negative" : " must be positive",
                        ", got ", values);
    }
  }

  // As check_axes, and each fits what a Windows holds.
  void check_geometry(const char* name, at::IntArrayRef values, int64_t least) const {
    check_axes(name, values, least);
    for (const int64_t value : values) {
      TORCH_CHECK_VALUE(value <= std::numeric_limits<int32_t>::max(), op, ": ", name, " must be below 2^31, got ",
                        values, "; use backend='torch' for larger ones");
    }
  }

  // A tensor without a target axis, (B, C, *size), in the memory order of the relevance.
  at::Tensor cache(const char* name, const at::Tensor& tensor, at::ScalarType dtype, at::IntArrayRef size) const {
    check_cpu(op, name, tensor);
    check_dtype(op, name, tensor, dtype);
    Sizes expected{B, C};
    expected.insert(expected.end(), size.begin(), size.end());
    check_sizes(op, name, tensor, expected);
    const at::Tensor resolved = tensor.resolve_neg();
    if (!channels_last) {
      return resolved.contiguous();
    }
    const bool dense = channels_last_dense(resolved, 1) && resolved.stride(0) == C * product(size);
    return dense ? resolved : to_channels_last(resolved);
  }

  // (B, K, C, *input_size)
  at::Tensor empty_out() const {
    Sizes memory{B, K};
    if (!channels_last) {
      memory.push_back(C);
    }
    memory.insert(memory.end(), input_size.begin(), input_size.end());
    if (channels_last) {
      memory.push_back(C);
    }
    at::Tensor out = at::empty(memory, relevance.options());
    prefer_huge_pages(out.mutable_data_ptr(), out.nbytes());
    return channels_last ? out.movedim(-1, 2) : out;
  }

  // One per spatial axis from make(inputs, outputs, axis), and before them those that make up three.
  template <class Make>
  std::array<Windows, 3> windows(const Make& make) const {
    const size_t n = input_size.size();
    TORCH_CHECK_VALUE(n <= 3, op, ": relevance must have one to three spatial axes, got ", relevance.sizes());
    check_geometry("input_size", input_size, 0);
    check_geometry("the size of relevance", output_size(), 0);
    const Windows one = pool_windows(1, 1, 1, 1, 0, 1);
    std::array<Windows, 3> axes{one, one, one};
    for (size_t axis = 0; axis < n; ++axis) {
      axes[3 - n + axis] = make(input_size[axis], output_size()[axis], axis);
    }
    return axes;
  }
};

template <class Launch>
void for_dtype(const at::Tensor& tensor, const Launch& launch) {
  tensor.scalar_type() == at::kFloat ? launch(0.0f) : launch(0.0);
}

template <class T>
const T* data_or_null(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<T>() : nullptr;
}

at::Tensor average(const Pool& pool, const std::array<Windows, 3>& axes, double factor) {
  const at::Tensor& relevance = pool.relevance;
  at::Tensor out = pool.empty_out();
  for_dtype(relevance, [&](auto zero) {
    using T = decltype(zero);
    cpu::pool_avg_relevance<T>(
        {relevance.const_data_ptr<T>(), relevance.stride(0), relevance.stride(1), relevance.stride(2),
         data_or_null<T>(pool.scale), out.mutable_data_ptr<T>(), pool.B, pool.K, pool.C, axes.data(), factor},
        pool.channels_last);
  });
  return out;
}

}  // namespace

at::Tensor pool_max_relevance(const at::Tensor& relevance_, const at::Tensor& index_, const OptionalTensor& scale,
                              const Sizes& input_size) {
  const Pool pool("pool_max_relevance", relevance_, scale, input_size);
  const at::Tensor index = pool.cache("index", index_, at::kLong, pool.output_size());
  const at::Tensor& relevance = pool.relevance;
  at::Tensor out = pool.empty_out();
  for_dtype(relevance, [&](auto zero) {
    using T = decltype(zero);
    const cpu::PoolMax<T> p{relevance.const_data_ptr<T>(),
                            relevance.stride(0),
                            relevance.stride(1),
                            relevance.stride(2),
                            index.const_data_ptr<int64_t>(),
                            data_or_null<T>(pool.scale),
                            out.mutable_data_ptr<T>(),
                            pool.B,
                            pool.K,
                            pool.C,
                            pool.outputs,
                            pool.inputs};
    pool.channels_last ? cpu::pool_max_relevance_channels_last(p) : cpu::pool_max_relevance(p);
  });
  return out;
}

at::Tensor pool_ties_relevance(const at::Tensor& relevance_, const at::Tensor& input_, const at::Tensor& output_,
                               const OptionalTensor& scale, const Sizes& kernel_size, const Sizes& stride,
                               const Sizes& padding, const Sizes& dilation) {
  constexpr const char* op = "pool_ties_relevance";
  TORCH_CHECK_VALUE(input_.dim() >= 3 && input_.dim() == relevance_.dim() - 1, op,
                    ": input must have shape (B, C, *S) with as many axes in S as relevance has after (B, K, C), got ",
                    input_.sizes(), " and relevance ", relevance_.sizes());
  const Pool pool(op, relevance_, scale, input_.sizes().slice(2).vec());
  const at::Tensor& relevance = pool.relevance;
  const at::Tensor input = pool.cache("input", input_, relevance.scalar_type(), pool.input_size);
  const at::Tensor output = pool.cache("output", output_, relevance.scalar_type(), pool.output_size());
  pool.check_geometry("kernel_size", kernel_size, 1);
  pool.check_geometry("stride", stride, 1);
  pool.check_geometry("padding", padding, 0);
  pool.check_geometry("dilation", dilation, 1);
  const auto axes = pool.windows([&](int64_t inputs, int64_t outputs, size_t i) {
    return pool_windows(inputs, outputs, kernel_size[i], stride[i], padding[i], dilation[i]);
  });
  at::Tensor out = pool.empty_out();
  for_dtype(relevance, [&](auto zero) {
    using T = decltype(zero);
    const cpu::PoolTies<T> p{relevance.const_data_ptr<T>(),
                             relevance.stride(0),
                             relevance.stride(1),
                             relevance.stride(2),
                             input.const_data_ptr<T>(),
                             output.const_data_ptr<T>(),
                             data_or_null<T>(pool.scale),
                             out.mutable_data_ptr<T>(),
                             pool.B,
                             pool.K,
                             pool.C,
                             axes.data()};
    cpu::pool_ties_relevance(p, pool.channels_last);
  });
  return out;
}

at::Tensor pool_avg_relevance(const at::Tensor& relevance, const OptionalTensor& scale, const Sizes& input_size,
                              const Sizes& kernel_size, const Sizes& stride, const Sizes& padding,
                              [[maybe_unused]] bool ceil_mode, bool count_include_pad,
                              std::optional<int64_t> divisor_override) {
  constexpr const char* op = "pool_avg_relevance";
  const Pool pool(op, relevance, scale, input_size);
  pool.check_geometry("kernel_size", kernel_size, 1);
  pool.check_geometry("stride", stride, 1);
  pool.check_geometry("padding", padding, 0);
  TORCH_CHECK_VALUE(divisor_override != 0, op,
                    ": divisor_override must not be 0; None divides by the size of the window");
  const auto axes = pool.windows([&](int64_t inputs, int64_t outputs, size_t i) {
    return divisor_override.has_value()
               ? pool_windows(inputs, outputs, kernel_size[i], stride[i], padding[i], 1)
               : average_windows(inputs, outputs, kernel_size[i], stride[i], padding[i], count_include_pad);
  });
  return average(pool, axes, 1.0 / static_cast<double>(divisor_override.value_or(1)));
}

at::Tensor pool_adaptive_avg_relevance(const at::Tensor& relevance, const OptionalTensor& scale,
                                       const Sizes& input_size) {
  const Pool pool("pool_adaptive_avg_relevance", relevance, scale, input_size);
  const bool same_size = pool.output_size() == at::IntArrayRef(input_size);
  if (pool.outputs == 1 || same_size) {
    const at::NoGradGuard no_grad;
    const at::Tensor flow =
        pool.scale.defined() ? pool.relevance.mul(pool.scale.unsqueeze(1)) : pool.relevance.detach();
    if (same_size) {
      return flow;
    }
    Sizes out_size{pool.B, pool.K, pool.C};
    out_size.insert(out_size.end(), input_size.begin(), input_size.end());
    return flow.div(pool.inputs).expand(out_size);
  }
  return average(
      pool, pool.windows([](int64_t inputs, int64_t outputs, size_t) { return adaptive_windows(inputs, outputs); }),
      1.0);
}

}  // namespace fastlrp::edge
