#include "../pool.h"

#include "../../cuda/pool.h"
#include "../pool_arguments.h"
#include "device.h"

namespace fastlrp::edge::cuda {
namespace {

namespace kernels = fastlrp::cuda;

constexpr int64_t kDenseFrom = 2;  // only samples and targets may have any strides

template <class T>
PoolFlow<T> flow_of(const PoolArguments& pool, const Tensor& out) {
  const T* scale = pool.scale.defined() ? data_of<T>(pool.scale) : nullptr;
  return pool.flow<T>(data_of<T>(pool.relevance), scale, data_of<T>(out));
}

// launch(stream, flow) -> the result that it fills
template <class Launch>
Tensor launched(const PoolArguments& pool, const Launch& launch) {
  const Tensor out = pool.empty_out();
  if (out.numel() == 0) {
    return out;
  }
  on_device(pool.relevance, [&](Stream stream) {
    with_type(pool.relevance.scalar_type(), [&](auto zero) { launch(stream, flow_of<decltype(zero)>(pool, out)); });
  });
  return out;
}

Tensor pool_max_relevance(const Tensor& relevance, const Tensor& index_, const OptionalTensor& scale,
                          const Sizes& input_size) {
  const PoolArguments pool({kCuda, "pool_max_relevance"}, relevance, scale, input_size, kDenseFrom);
  const Tensor index = pool.cache("index", index_, kLong, pool.output_size());
  const Tensor scratch =
      empty({kernels::pool_max_scratch(pool.B, pool.C, pool.outputs, pool.inputs)}, pool.relevance, kInt);
  return launched(pool, [&]<class T>(Stream stream, const PoolFlow<T>& flow) {
    kernels::pool_max_relevance<T>({flow, data_of<int64_t>(index), data_of<int32_t>(scratch)}, stream);
  });
}

Tensor pool_ties_relevance(const Tensor& relevance, const Tensor& input, const Tensor& output,
                           const OptionalTensor& scale, const Sizes& kernel_size, const Sizes& stride,
                           const Sizes& padding, const Sizes& dilation) {
  const TiesArguments ties({kCuda, "pool_ties_relevance"}, relevance, input, output, scale, kernel_size, stride,
                           padding, dilation, kDenseFrom);
  const PoolArguments& pool = ties.pool;
  const ScalarType dtype = pool.relevance.scalar_type();
  const auto axes = pool.lines(Axis(), [&](size_t i) {
    return Axis(pool.input_size[i], pool.output_size()[i], kernel_size[i], stride[i], padding[i], dilation[i]);
  });
  const Tensor share = empty({pool.B * pool.C * pool.outputs}, ties.output, dtype == kDouble ? kDouble : kFloat);
  return launched(pool, [&]<class T>(Stream stream, const PoolFlow<T>& flow) {
    kernels::pool_ties_relevance<T>({flow,
                                     data_of<T>(ties.input),
                                     data_of<T>(ties.output),
                                     data_of<kernels::Accumulate<T>>(share),
                                     {axes[0], axes[1], axes[2]}},
                                    stream);
  });
}

Tensor pool_avg_relevance(const Tensor& relevance, const OptionalTensor& scale, const Sizes& input_size,
                          const Sizes& kernel_size, const Sizes& stride, const Sizes& padding,
                          [[maybe_unused]] bool ceil_mode, bool count_include_pad,
                          std::optional<int64_t> divisor_override) {
  const PoolArguments pool({kCuda, "pool_avg_relevance"}, relevance, scale, input_size, kDenseFrom);
  check_average(pool, kernel_size, stride, padding, divisor_override);
  const auto axes = pool.lines(Axis(), [&](size_t i) {
    return Axis(input_size[i], pool.output_size()[i], kernel_size[i], stride[i], padding[i], 1);
  });
  return launched(pool, [&]<class T>(Stream stream, const PoolFlow<T>& flow) {
    kernels::pool_avg_relevance<T>({flow,
                                    {axes[0], axes[1], axes[2]},
                                    !divisor_override.has_value(),
                                    count_include_pad,
                                    1.0 / static_cast<double>(divisor_override.value_or(1))},
                                   stream);
  });
}

Tensor pool_adaptive_avg_relevance(const Tensor& relevance, const OptionalTensor& scale, const Sizes& input_size) {
  const PoolArguments pool({kCuda, "pool_adaptive_avg_relevance"}, relevance, scale, input_size, kDenseFrom);
  if (const OptionalTensor view = adaptive_view(pool)) {
    return *view;
  }
  const auto axes =
      pool.lines(AdaptiveAxis(), [&](size_t i) { return AdaptiveAxis(input_size[i], pool.output_size()[i]); });
  return launched(pool, [&]<class T>(Stream stream, const PoolFlow<T>& flow) {
    kernels::pool_adaptive_avg_relevance<T>({flow, {axes[0], axes[1], axes[2]}}, stream);
  });
}

}  // namespace

const PoolFunctions kPool{pool_max_relevance, pool_ties_relevance, pool_avg_relevance, pool_adaptive_avg_relevance};

}  // namespace fastlrp::edge::cuda
