#include "elementwise.h"

#include "../../cuda/elementwise.h"
#include "../axes.h"
#include "../elementwise_arguments.h"
#include "device.h"

namespace fastlrp::edge::cuda {
namespace {

namespace kernels = fastlrp::cuda;

template <class T>
T* data_or_null(const Tensor& tensor) {
  return tensor.defined() ? data_of<T>(tensor) : nullptr;
}

// As PyTorch counts: with ceil_mode the last window may hang over the end, but starts before the padding there.
int64_t windows_along(int64_t n, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation, bool ceil_mode) {
  const int64_t room = n + 2 * padding - dilation * (kernel - 1) - 1;
  if (room + (ceil_mode ? stride - 1 : 0) < 0) {
    return 0;
  }
  const int64_t windows = (room + (ceil_mode ? stride - 1 : 0)) / stride + 1;
  return ceil_mode && (windows - 1) * stride >= n + padding ? windows - 1 : windows;
}

}  // namespace

CoefficientTensors elementwise_coefficients(const Tensor& z, const OptionalTensor& positive,
                                            const OptionalTensor& negative, const OptionalTensor& factor_,
                                            const std::string& rule, double alpha, double epsilon) {
  CoefficientArguments a({kCuda, "elementwise_coefficients"}, z, rule);
  a.z = a.z.is_non_overlapping_and_dense() ? a.z : a.z.contiguous();
  a.take(positive, negative);
  const Tensor factor = a.like_z("factor", factor_, factor_.has_value());
  on_device(a.z, [&](Stream stream) {
    with_type(a.z.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      using A = kernels::Accumulate<T>;
      const kernels::Coefficients<T> p{data_of<T>(a.z),
                                       data_or_null<T>(a.positive),
                                       data_or_null<T>(a.negative),
                                       data_or_null<T>(factor),
                                       data_of<T>(a.u),
                                       data_of<T>(a.v),
                                       a.z.numel(),
                                       static_cast<A>(alpha),
                                       static_cast<A>(epsilon)};
      kernels::elementwise_coefficients<T>(a.rule, p, stream);
    });
  });
  return {a.u, a.v};
}

PooledTensors elementwise_pooled_coefficients(const Tensor& z, const OptionalTensor& positive,
                                              const OptionalTensor& negative, const std::string& rule, double alpha,
                                              double epsilon, const Sizes& kernel_size, const Sizes& stride,
                                              const Sizes& padding, const Sizes& dilation, bool ceil_mode) {
  constexpr const char* op = "elementwise_pooled_coefficients";
  const Check check{kCuda, op};
  CoefficientArguments a(check, z, rule);
  REQUIRE_VALUE(z.dim() >= 3 && z.dim() <= 5, op, ": z must have shape (B, C, *S) with one to three spatial axes, got ",
                z.sizes());
  const Ints input_size = z.sizes().slice(2);
  const size_t n = input_size.size();
  check.axes("kernel_size", kernel_size, n, "z", 1);
  check.axes("stride", stride, n, "z", 1);
  check.axes("padding", padding, n, "z", 0);
  check.axes("dilation", dilation, n, "z", 1);
  Sizes size;
  for (size_t i = 0; i < n; ++i) {
    size.push_back(windows_along(input_size[i], kernel_size[i], stride[i], padding[i], dilation[i], ceil_mode));
    REQUIRE_VALUE(input_size[i] > 0 && size[i] > 0, op, ": z must be large enough for one window, got ", z.sizes(),
                  " for kernel_size ", Ints(kernel_size), " with padding ", Ints(padding), " and dilation ",
                  Ints(dilation));
  }
  const int64_t B = z.size(0), C = z.size(1);
  check.elements("z", C, input_size);
  check.elements("z and padding", C, size);
  const bool channels_last =
      channels_last_dense(a.z, 1) && a.z.stride(0) == C * product(input_size) && !a.z.is_contiguous();
  a.z = channels_last ? a.z : a.z.contiguous();
  a.take(positive, negative);
  const auto axes = three_axes<Axis>(check, "z", z, n, Axis(), [&](size_t i) {
    return Axis(input_size[i], size[i], kernel_size[i], stride[i], padding[i], dilation[i]);
  });
  Sizes memory{B};
  if (!channels_last) {
    memory.push_back(C);
  }
  memory.insert(memory.end(), size.begin(), size.end());
  if (channels_last) {
    memory.push_back(C);
  }
  const auto room = [&](ScalarType dtype) {
    const Tensor made = empty(memory, a.z, dtype);
    return channels_last ? made.movedim(-1, 1) : made;
  };
  const Tensor pooled = room(a.z.scalar_type()), index = room(kLong);
  on_device(a.z, [&](Stream stream) {
    with_type(a.z.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      using A = kernels::Accumulate<T>;
      const kernels::PooledCoefficients<T> p{data_of<T>(a.z),
                                             data_or_null<T>(a.positive),
                                             data_or_null<T>(a.negative),
                                             data_of<T>(pooled),
                                             data_of<int64_t>(index),
                                             data_of<T>(a.u),
                                             data_of<T>(a.v),
                                             B,
                                             C,
                                             channels_last,
                                             {axes[0], axes[1], axes[2]},
                                             static_cast<A>(alpha),
                                             static_cast<A>(epsilon)};
      kernels::elementwise_pooled_coefficients<T>(a.rule, p, stream);
    });
  });
  return {pooled, index, a.u, a.v};
}

}  // namespace fastlrp::edge::cuda
