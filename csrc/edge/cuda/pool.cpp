#include "pool.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>

#include "../../cuda/pool.h"
#include "axes.h"

namespace fastlrp::edge::cuda {
namespace {

namespace kernels = fastlrp::cuda;

// Arguments that every pool has, checked, in one memory order. The relevance, by far the largest, decides which; its
// first two axes may have any strides.
struct Pool {
  const char* op;
  Sizes input_size;
  at::Tensor relevance, scale;
  int64_t B, K, C, outputs, inputs;
  bool channels_last;

  Pool(const char* op_, const at::Tensor& relevance_, const OptionalTensor& scale_, const Sizes& input_size_)
      : op(op_), input_size(input_size_) {
    check_device(op, "relevance", relevance_);
    check_floating(op, "relevance", relevance_);
    TORCH_CHECK_VALUE(relevance_.dim() >= 4, op, ": relevance must have shape (B, K, C, *S'), got ",
                      relevance_.sizes());
    relevance = relevance_.resolve_neg();
    B = relevance.size(0), K = relevance.size(1), C = relevance.size(2);
    check_geometry("input_size", input_size, 0);
    check_elements(op, "input_size", C, input_size);
    check_elements(op, "the size of relevance", C, output_size());
    outputs = limited_product(output_size());
    inputs = limited_product(input_size);
    // One entry for each channel is both: then channels are longer than rows.
    channels_last = channels_last_dense(relevance, 2) && (outputs == 1 || !contiguous_from(relevance, 3));
    if (!channels_last && !contiguous_from(relevance, 2)) {
      relevance = relevance.contiguous();
    }
    if (scale_.has_value()) {
      scale = cache("scale", *scale_, relevance.scalar_type(), output_size());
    }
  }

  at::IntArrayRef output_size() const { return relevance.sizes().slice(3); }
  size_t axes() const { return input_size.size(); }

  void check_geometry(const char* name, at::IntArrayRef values, int64_t least) const {
    check_axes(op, name, values, output_size().size(), "relevance", least);
  }

  // A tensor without a target axis, (B, C, *size), in the memory order of the relevance.
  at::Tensor cache(const char* name, const at::Tensor& tensor, at::ScalarType dtype, at::IntArrayRef size) const {
    check_same_device(op, name, tensor, relevance);
    check_dtype(op, name, tensor, dtype);
    Sizes expected{B, C};
    expected.insert(expected.end(), size.begin(), size.end());
    check_sizes(op, name, tensor, expected);
    const at::Tensor resolved = tensor.resolve_neg();
    if (!channels_last) {
      return resolved.contiguous();
    }
    const bool dense = channels_last_dense(resolved, 1) && resolved.stride(0) == C * limited_product(size);
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
    const at::Tensor out = at::empty(memory, relevance.options());
    return channels_last ? out.movedim(-1, 2) : out;
  }

  template <class T>
  kernels::PoolFlow<T> flow(const at::Tensor& out) const {
    return {data_of<T>(relevance),
            relevance.stride(0),
            relevance.stride(1),
            scale.defined() ? data_of<T>(scale) : nullptr,
            data_of<T>(out),
            B,
            K,
            C,
            outputs,
            inputs,
            channels_last};
  }

  // launch(T{}, stream, flow) -> the result that it fills
  template <class Launch>
  at::Tensor run(const Launch& launch) const {
    const at::Tensor out = empty_out();
    on_device(relevance, [&](Stream stream) {
      with_type(relevance.scalar_type(), [&](auto zero) { launch(stream, flow<decltype(zero)>(out)); });
    });
    return out;
  }

  template <class Line, class Make>
  std::array<Line, 3> lines(const Make& make) const {
    return three_axes<Line>(op, "relevance", relevance, axes(), make);
  }
};

}  // namespace

at::Tensor pool_max_relevance(const at::Tensor& relevance, const at::Tensor& index_, const OptionalTensor& scale,
                              const Sizes& input_size) {
  const Pool pool("pool_max_relevance", relevance, scale, input_size);
  const at::Tensor index = pool.cache("index", index_, at::kLong, pool.output_size());
  const at::Tensor scratch = at::empty({kernels::pool_max_scratch(pool.B, pool.C, pool.outputs, pool.inputs)},
                                       pool.relevance.options().dtype(at::kInt));
  return pool.run([&]<class T>(Stream stream, const kernels::PoolFlow<T>& flow) {
    kernels::pool_max_relevance<T>({flow, data_of<int64_t>(index), data_of<int32_t>(scratch)}, stream);
  });
}

at::Tensor pool_ties_relevance(const at::Tensor& relevance, const at::Tensor& input_, const at::Tensor& output_,
                               const OptionalTensor& scale, const Sizes& kernel_size, const Sizes& stride,
                               const Sizes& padding, const Sizes& dilation) {
  constexpr const char* op = "pool_ties_relevance";
  TORCH_CHECK_VALUE(input_.dim() >= 3 && input_.dim() == relevance.dim() - 1, op,
                    ": input must have shape (B, C, *S) with as many axes in S as relevance has after (B, K, C), got ",
                    input_.sizes(), " and relevance ", relevance.sizes());
  const Pool pool(op, relevance, scale, input_.sizes().slice(2).vec());
  const at::ScalarType dtype = pool.relevance.scalar_type();
  const at::Tensor input = pool.cache("input", input_, dtype, pool.input_size);
  const at::Tensor output = pool.cache("output", output_, dtype, pool.output_size());
  pool.check_geometry("kernel_size", kernel_size, 1);
  pool.check_geometry("stride", stride, 1);
  pool.check_geometry("padding", padding, 0);
  pool.check_geometry("dilation", dilation, 1);
  const auto axes = pool.lines<Axis>([&](size_t i) {
    return Axis(pool.input_size[i], pool.output_size()[i], kernel_size[i], stride[i], padding[i], dilation[i]);
  });
  const at::Tensor share = at::empty({pool.B * pool.C * pool.outputs},
                                     output.options().dtype(dtype == at::kDouble ? at::kDouble : at::kFloat));
  return pool.run([&]<class T>(Stream stream, const kernels::PoolFlow<T>& flow) {
    kernels::pool_ties_relevance<T>({flow,
                                     data_of<T>(input),
                                     data_of<T>(output),
                                     data_of<kernels::Accumulate<T>>(share),
                                     {axes[0], axes[1], axes[2]}},
                                    stream);
  });
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
  const auto axes = pool.lines<Axis>(
      [&](size_t i) { return Axis(input_size[i], pool.output_size()[i], kernel_size[i], stride[i], padding[i], 1); });
  return pool.run([&]<class T>(Stream stream, const kernels::PoolFlow<T>& flow) {
    kernels::pool_avg_relevance<T>({flow,
                                    {axes[0], axes[1], axes[2]},
                                    !divisor_override.has_value(),
                                    count_include_pad,
                                    1.0 / static_cast<double>(divisor_override.value_or(1))},
                                   stream);
  });
}

at::Tensor pool_adaptive_avg_relevance(const at::Tensor& relevance, const OptionalTensor& scale,
                                       const Sizes& input_size) {
  const Pool pool("pool_adaptive_avg_relevance", relevance, scale, input_size);
  // One window over all is a broadcast, which costs no memory.
  if (pool.outputs == 1 || pool.output_size() == at::IntArrayRef(input_size)) {
    const at::NoGradGuard no_grad;
    const at::Tensor flow =
        pool.scale.defined() ? pool.relevance.mul(pool.scale.unsqueeze(1)) : pool.relevance.detach();
    if (pool.outputs != 1 || pool.inputs == 1) {
      return flow;
    }
    Sizes size{pool.B, pool.K, pool.C};
    size.insert(size.end(), input_size.begin(), input_size.end());
    return flow.div(pool.inputs).expand(size);
  }
  const auto axes =
      pool.lines<AdaptiveAxis>([&](size_t i) { return AdaptiveAxis(input_size[i], pool.output_size()[i]); });
  return pool.run([&]<class T>(Stream stream, const kernels::PoolFlow<T>& flow) {
    kernels::pool_adaptive_avg_relevance<T>({flow, {axes[0], axes[1], axes[2]}}, stream);
  });
}

}  // namespace fastlrp::edge::cuda
