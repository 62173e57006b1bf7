#include "conv_few.h"

#include "../cpu/conv_few.h"
#include "conv_winograd_arguments.h"
#include "require.h"

namespace fastlrp::edge {

Tensor conv_few_transposed(const Tensor& x_, const OptionalTensor& scale_, const Tensor& weight_, const Sizes& size,
                           const Sizes& stride, const Sizes& padding) {
  const Check check{kCpu, "conv_few_transposed"};
  check.dtype("x", x_, kFloat);
  check.tensor("x", x_);
  REQUIRE_VALUE(x_.dim() == 4 && x_.size(1) > 0 && x_.size(1) % cpu::kFewLanes == 0, check.op,
                ": x must have shape (N, Co, H', W') with Co in multiples of ", cpu::kFewLanes, ", got ", x_.sizes());
  check.like("weight", weight_, x_);
  REQUIRE_VALUE(weight_.dim() == 4 && weight_.size(0) == x_.size(1) && weight_.numel() > 0, check.op,
                ": weight must have shape (", x_.size(1), ", C, h, w), got ", weight_.sizes());
  check.axes("size", size, 2, "x", 1);
  check.axes("stride", stride, 2, "x", 1);
  check.axes("padding", padding, 2, "x", 0);
  cpu::ConvFew p{x_.size(0), x_.size(1), weight_.size(1)};
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
    winograd_check_scale(check, *scale_, x_);
    scale = dense(*scale_);
  }
  const int64_t area = size[0] * size[1];
  const Tensor y = empty_strided({p.samples, p.channels, size[0], size[1]},
                                 {p.channels * area, 1, size[1] * p.channels, p.channels}, x_);
  if (y.numel() > 0) {
    const Tensor x = dense(x_), weight = weight_.resolve_neg().contiguous();
    const Tensor packed = empty({p.outputs, p.columns()}, weight);
    cpu::conv_few_pack(p, weight.const_data_ptr<float>(), packed.mutable_data_ptr<float>());
    p.x = x.const_data_ptr<float>();
    p.scale = scale.defined() ? scale.const_data_ptr<float>() : nullptr;
    p.targets = scale.defined() ? p.samples / scale_->size(0) : 1;
    p.weight = packed.const_data_ptr<float>();
    p.y = y.mutable_data_ptr<float>();
    cpu::conv_few(p);
  }
  return y;
}

}  // namespace fastlrp::edge
