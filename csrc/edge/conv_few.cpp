#include "conv_few.h"

#include "../cpu/conv_few.h"
#include "require.h"

namespace fastlrp::edge {

Tensor conv_few_transposed(const Tensor& x_, const OptionalTensor& scale_, const Tensor& weight_, const Sizes& size,
                           const Sizes& stride, const Sizes& padding, bool narrow) {
  const Check check{kCpu, "conv_few_transposed"};
  const ScalarType dtype = x_.scalar_type();
  REQUIRE_VALUE(x_.is_cpu() && (dtype == kFloat || (narrow && dtype == kBFloat16)), check.op, ": x must be of float32",
                narrow ? " or bfloat16" : "", " on the CPU, got ", dtype, " on ", x_.device());
  REQUIRE_VALUE(x_.dim() == 4 && x_.size(1) > 0 && x_.size(1) % cpu::kFewLanes == 0, check.op,
                ": x must have shape (N, Co, H', W') with Co in multiples of ", cpu::kFewLanes, ", got ", x_.sizes());
  check.beside("weight", weight_, x_);
  check.dtype("weight", weight_, kFloat);
  REQUIRE_VALUE(weight_.dim() == 4 && weight_.size(0) == x_.size(1) && weight_.numel() > 0, check.op,
                ": weight must have shape (", x_.size(1), ", C, h, w), got ", weight_.sizes());
  check.axes("size", size, 2, "x", 1);
  check.axes("stride", stride, 2, "x", 1);
  check.axes("padding", padding, 2, "x", 0);
  cpu::FewShape p{x_.size(0), x_.size(1), weight_.size(1)};
  for (int axis = 0; axis < 2; ++axis) {
    p.out_size[axis] = x_.size(axis + 2);
    p.size[axis] = size[axis];
    p.kernel[axis] = weight_.size(axis + 2);
    p.stride[axis] = stride[axis];
    p.padding[axis] = padding[axis];
    const int64_t reach = size[axis] + 2 * padding[axis] - p.kernel[axis];
    REQUIRE_VALUE(reach >= 0 && reach / stride[axis] + 1 == p.out_size[axis], check.op, ": a map of ", Ints(size),
                  " with stride ", Ints(stride), " and padding ", Ints(padding), " does not give x of ", x_.sizes());
  }
  const auto dense = [](const Tensor& t) { return to_channels_last(t.resolve_neg()); };
  Tensor scale;
  if (scale_.has_value()) {
    check.beside("scale", *scale_, x_);
    check.dtype("scale", *scale_, kFloat);
    const bool fits = scale_->dim() == 4 && scale_->size(0) > 0 && x_.size(0) % scale_->size(0) == 0 &&
                      scale_->sizes().slice(1) == x_.sizes().slice(1);
    REQUIRE_VALUE(fits || x_.size(0) == 0, check.op, ": scale must have shape (N / K, Co, H', W') for x of ",
                  x_.sizes(), ", got ", scale_->sizes());
    scale = dense(*scale_);
  }
  const int64_t area = size[0] * size[1];
  p.targets = scale.defined() && x_.size(0) > 0 ? x_.size(0) / scale_->size(0) : 1;
  const Tensor y = empty_strided({p.samples, p.channels, size[0], size[1]},
                                 {p.channels * area, 1, size[1] * p.channels, p.channels}, x_, kFloat);
  if (y.numel() == 0) {
    return y;
  }
  const Tensor x = dense(x_), weight = weight_.resolve_neg().contiguous();
  const Tensor packed = empty({p.outputs, p.columns()}, weight, narrow ? kBFloat16 : kFloat);
  const auto run = [&](auto from, auto number) {
    using From = decltype(from);
    using Number = decltype(number);
    Number* matrix = static_cast<Number*>(packed.mutable_data_ptr());
    cpu::conv_few_pack(p, weight.const_data_ptr<float>(), matrix);
    cpu::conv_few<From, Number>({p, static_cast<const From*>(x.const_data_ptr()),
                                 scale.defined() ? scale.const_data_ptr<float>() : nullptr, matrix,
                                 y.mutable_data_ptr<float>()});
  };
  !narrow ? run(0.0f, 0.0f) : dtype == kFloat ? run(0.0f, Bf16(0.0f)) : run(Bf16(0.0f), Bf16(0.0f));
  return y;
}

}  // namespace fastlrp::edge
