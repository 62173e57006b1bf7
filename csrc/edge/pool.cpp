#include "pool.h"

#include "../common/bf16.h"
#include "../common/memory.h"
#include "../cpu/pool.h"
#include "pool_arguments.h"

namespace fastlrp::edge {
namespace {

constexpr int64_t kDenseFrom = 3;  // channels may have any stride

template <class Launch>
void for_dtype(const Tensor& tensor, const Launch& launch) {
  tensor.scalar_type() == kFloat ? launch(0.0f) : launch(0.0);
}

template <class T>
PoolFlow<T> flow_of(const PoolArguments& pool, const Tensor& out) {
  const T* scale = pool.scale.defined() ? pool.scale.const_data_ptr<T>() : nullptr;
  return pool.flow<T>(pool.relevance.const_data_ptr<T>(), scale, out.mutable_data_ptr<T>());
}

Tensor empty_out(const PoolArguments& pool) {
  Tensor out = pool.empty_out();
  prefer_huge_pages(out.mutable_data_ptr(), out.nbytes());
  return out;
}

// One per spatial axis from make(inputs, outputs, axis).
template <class Make>
std::array<Windows, 3> windows(const PoolArguments& pool, const Make& make) {
  return pool.lines(pool_windows(1, 1, 1, 1, 0, 1),
                    [&](size_t axis) { return make(pool.input_size[axis], pool.output_size()[axis], axis); });
}

template <class Make>
Tensor average(const PoolArguments& pool, double factor, const Make& make) {
  Tensor out = empty_out(pool);
  if (out.numel() == 0) {
    return out;
  }
  const std::array<Windows, 3> axes = windows(pool, make);
  for_dtype(pool.relevance, [&](auto zero) {
    using T = decltype(zero);
    cpu::pool_avg_relevance<T>({flow_of<T>(pool, out), axes.data(), factor});
  });
  return out;
}

Tensor pool_max_relevance(const Tensor& relevance, const Tensor& index_, const OptionalTensor& scale,
                          const Sizes& input_size) {
  // Winners without a scale are the only ones that narrow registers pass on their way down.
  const bool narrow = relevance.scalar_type() == kBFloat16 && !scale.has_value();
  const PoolArguments pool({narrow ? kCpuNarrow : kCpu, "pool_max_relevance"}, relevance, scale, input_size,
                           kDenseFrom);
  const Tensor index = pool.cache("index", index_, kLong, pool.output_size());
  Tensor out = empty_out(pool);
  if (narrow) {
    const PoolFlow<Bf16> flow = pool.flow<Bf16>(static_cast<const Bf16*>(pool.relevance.const_data_ptr()), nullptr,
                                                static_cast<Bf16*>(out.mutable_data_ptr()));
    cpu::pool_max_relevance<Bf16>({flow, index.const_data_ptr<int64_t>()});
    return out;
  }
  for_dtype(pool.relevance, [&](auto zero) {
    using T = decltype(zero);
    cpu::pool_max_relevance<T>({flow_of<T>(pool, out), index.const_data_ptr<int64_t>()});
  });
  return out;
}

Tensor pool_ties_relevance(const Tensor& relevance, const Tensor& input, const Tensor& output,
                           const OptionalTensor& scale, const Sizes& kernel_size, const Sizes& stride,
                           const Sizes& padding, const Sizes& dilation) {
  const TiesArguments ties({kCpu, "pool_ties_relevance"}, relevance, input, output, scale, kernel_size, stride, padding,
                           dilation, kDenseFrom);
  const PoolArguments& pool = ties.pool;
  Tensor out = empty_out(pool);
  if (out.numel() == 0) {
    return out;
  }
  const auto axes = windows(pool, [&](int64_t inputs, int64_t outputs, size_t i) {
    return pool_windows(inputs, outputs, kernel_size[i], stride[i], padding[i], dilation[i]);
  });
  for_dtype(pool.relevance, [&](auto zero) {
    using T = decltype(zero);
    const T *input_data = ties.input.const_data_ptr<T>(), *output_data = ties.output.const_data_ptr<T>();
    cpu::pool_ties_relevance<T>({flow_of<T>(pool, out), input_data, output_data, axes.data()});
  });
  return out;
}

Tensor pool_avg_relevance(const Tensor& relevance, const OptionalTensor& scale, const Sizes& input_size,
                          const Sizes& kernel_size, const Sizes& stride, const Sizes& padding,
                          [[maybe_unused]] bool ceil_mode, bool count_include_pad,
                          std::optional<int64_t> divisor_override) {
  const PoolArguments pool({kCpu, "pool_avg_relevance"}, relevance, scale, input_size, kDenseFrom);
  check_average(pool, kernel_size, stride, padding, divisor_override);
  const double factor = 1.0 / static_cast<double>(divisor_override.value_or(1));
  return average(pool, factor, [&](int64_t inputs, int64_t outputs, size_t i) {
    return divisor_override.has_value()
               ? pool_windows(inputs, outputs, kernel_size[i], stride[i], padding[i], 1)
               : average_windows(inputs, outputs, kernel_size[i], stride[i], padding[i], count_include_pad);
  });
}

Tensor pool_adaptive_avg_relevance(const Tensor& relevance, const OptionalTensor& scale, const Sizes& input_size) {
  const PoolArguments pool({kCpu, "pool_adaptive_avg_relevance"}, relevance, scale, input_size, kDenseFrom);
  if (const OptionalTensor view = adaptive_view(pool)) {
    return *view;
  }
  return average(pool, 1.0, [](int64_t inputs, int64_t outputs, size_t) { return adaptive_windows(inputs, outputs); });
}

}  // namespace

const PoolFunctions kPool{pool_max_relevance, pool_ties_relevance, pool_avg_relevance, pool_adaptive_avg_relevance};

}  // namespace fastlrp::edge
