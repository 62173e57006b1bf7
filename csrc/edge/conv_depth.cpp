#include "conv_depth.h"

#include "../common/memory.h"
#include "../cpu/conv_depth.h"
#include "conv_winograd_arguments.h"
#include "require.h"

namespace fastlrp::edge {
namespace {

// Weights (C, 1, h, w) as the kernel reads them, (taps, C); `less`: what is taken away from them, or null.
void pack(int64_t channels, int64_t taps, const float* weight, const float* less, float* packed) {
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t tap = 0; tap < taps; ++tap) {
      const int64_t at = c * taps + tap;
      packed[tap * channels + c] = less == nullptr ? weight[at] : weight[at] - less[at];
    }
  }
}

}  // namespace

Tensor conv_depth_transposed(const Tensor& x_, const OptionalTensor& scale_, const Tensor& weight_,
                             const OptionalTensor& positive_, const OptionalTensor& sign_, const Sizes& size,
                             const Sizes& stride, const Sizes& padding, const Sizes& dilation) {
  const Check check{kCpu, "conv_depth_transposed"};
  check.dtype("x", x_, kFloat);
  check.tensor("x", x_);
  REQUIRE_VALUE(x_.dim() == 4 && x_.size(1) >= cpu::kDepthLanes, check.op,
                ": x must have shape (N, C, H', W') with C at least ", cpu::kDepthLanes, ", got ", x_.sizes());
  check.like("weight", weight_, x_);
  REQUIRE_VALUE(weight_.dim() == 4 && weight_.size(0) == x_.size(1) && weight_.size(1) == 1 && weight_.numel() > 0 &&
                    weight_.size(2) <= cpu::kDepthTaps && weight_.size(3) <= cpu::kDepthTaps,
                check.op, ": weight must have shape (", x_.size(1), ", 1, h, w) with h and w at most ", cpu::kDepthTaps,
                ", got ", weight_.sizes());
  REQUIRE_VALUE(positive_.has_value() == sign_.has_value(), check.op,
                ": positive and sign must be given together, or neither");
  check.axes("size", size, 2, "x", 1);
  check.axes("stride", stride, 2, "x", 1);
  check.axes("padding", padding, 2, "x", 0);
  check.axes("dilation", dilation, 2, "x", 1);
  cpu::ConvDepth p{x_.size(0), x_.size(1)};
  for (int axis = 0; axis < 2; ++axis) {
    p.out_size[axis] = x_.size(axis + 2);
    p.size[axis] = size[axis];
    p.kernel[axis] = weight_.size(axis + 2);
    p.stride[axis] = stride[axis];
    p.padding[axis] = padding[axis];
    p.dilation[axis] = dilation[axis];
    const int64_t reach = size[axis] + 2 * padding[axis] - dilation[axis] * (p.kernel[axis] - 1) - 1;
    REQUIRE_VALUE(reach >= 0 && reach / stride[axis] + 1 == p.out_size[axis], check.op, ": a map of ", Ints(size),
                  " with stride ", Ints(stride), ", padding ", Ints(padding), " and dilation ", Ints(dilation),
                  " does not give x of ", x_.sizes());
  }
  const auto dense = [](const Tensor& t) { return to_channels_last(t.resolve_neg()); };
  Tensor scale, sign;
  if (scale_.has_value()) {
    winograd_check_scale(check, *scale_, x_);
    scale = dense(*scale_);
  }
  int64_t targets = scale.defined() && scale.size(0) > 0 ? p.samples / scale.size(0) : 1;
  if (sign_.has_value()) {
    check.like("positive", *positive_, x_);
    REQUIRE_VALUE(positive_->sizes() == weight_.sizes(), check.op, ": positive must have the weight's shape ",
                  weight_.sizes(), ", got ", positive_->sizes());
    check.like("sign", *sign_, x_);
    const int64_t own = scale.defined() ? scale.size(0) : sign_->dim() == 4 ? sign_->size(0) : 0;
    const bool fits = sign_->dim() == 4 && sign_->size(0) == own && sign_->size(1) == p.channels &&
                      sign_->size(2) == size[0] && sign_->size(3) == size[1] &&
                      (own == 0 ? p.samples == 0 : p.samples % own == 0);
    REQUIRE_VALUE(fits, check.op, ": sign must have shape (N / K, ", p.channels, ", ", size[0], ", ", size[1],
                  ") with as many samples as scale, got ", sign_->sizes());
    sign = dense(*sign_);
    targets = own == 0 ? 1 : p.samples / own;
  }
  const int64_t area = size[0] * size[1];
  const Tensor y = empty_strided({p.samples, p.channels, size[0], size[1]},
                                 {p.channels * area, 1, size[1] * p.channels, p.channels}, x_);
  if (y.numel() > 0) {
    prefer_huge_pages(y.mutable_data_ptr(), y.nbytes());
    const Tensor x = dense(x_), weight = weight_.resolve_neg().contiguous();
    const int64_t taps = p.kernel[0] * p.kernel[1];
    const Tensor packed = empty({sign.defined() ? 2 : 1, taps, p.channels}, weight);
    float* to = packed.mutable_data_ptr<float>();
    if (sign.defined()) {
      const Tensor positive = positive_->resolve_neg().contiguous();
      pack(p.channels, taps, positive.const_data_ptr<float>(), nullptr, to);
      pack(p.channels, taps, weight.const_data_ptr<float>(), positive.const_data_ptr<float>(), to + taps * p.channels);
      p.sign = sign.const_data_ptr<float>();
    } else {
      pack(p.channels, taps, weight.const_data_ptr<float>(), nullptr, to);
    }
    p.x = x.const_data_ptr<float>();
    p.scale = scale.defined() ? scale.const_data_ptr<float>() : nullptr;
    p.targets = targets;
    p.weight = packed.const_data_ptr<float>();
    p.y = y.mutable_data_ptr<float>();
    cpu::conv_depth(p);
  }
  return y;
}

}  // namespace fastlrp::edge
