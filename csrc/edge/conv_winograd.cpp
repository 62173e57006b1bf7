#include "conv_winograd.h"

#include <cstdint>

#include "../common/memory.h"
#include "../cpu/conv_winograd.h"
#include "conv_winograd_arguments.h"
#include "require.h"

namespace fastlrp::edge {

Tensor winograd_pack(const Tensor& weight_, bool turned) {
  const Check check{kCpu, "winograd_pack"};
  check.dtype("weight", weight_, kFloat);
  check.tensor("weight", weight_);
  const int64_t lanes = cpu::kWinogradLanes;
  REQUIRE_VALUE(weight_.dim() == 4 && weight_.size(2) == 3 && weight_.size(3) == 3 && weight_.size(0) % lanes == 0 &&
                    weight_.size(1) % lanes == 0 && weight_.numel() > 0,
                check.op, ": weight must have shape (Co, Ci, 3, 3) with channels in multiples of ", lanes, ", got ",
                weight_.sizes());
  const Tensor weight = weight_.resolve_neg().contiguous();
  const int64_t outputs = weight.size(turned ? 1 : 0), inputs = weight.size(turned ? 0 : 1);
  const Tensor packed = empty({cpu::kWinogradParts, outputs, inputs}, weight);
  prefer_huge_pages(packed.mutable_data_ptr(), packed.nbytes());
  cpu::winograd_pack(outputs, inputs, weight.const_data_ptr<float>(), turned, packed.mutable_data_ptr<float>());
  return packed;
}

Tensor winograd_convolution(const Tensor& x_, const Tensor& weight, const OptionalTensor& bias_,
                            const OptionalTensor& scale_, const OptionalTensor& least_, const Sizes& padding,
                            bool not_negative, bool alike, const OptionalTensor& second_) {
  const Check check{kCpu, "winograd_convolution"};
  check.dtype("x", x_, kFloat);
  check.tensor("x", x_);
  REQUIRE_VALUE(x_.dim() == 4, check.op, ": x must have shape (N, Ci, H, W), got ", x_.sizes());
  check.like("weight", weight, x_);
  const int64_t inputs = x_.size(1) * (second_.has_value() ? 2 : 1);
  REQUIRE_VALUE(
      weight.dim() == 3 && weight.size(0) == cpu::kWinogradParts && weight.size(2) == inputs && weight.is_contiguous(),
      check.op, ": weight must be what winograd_pack makes for ", inputs, " channels, got ", weight.sizes());
  const Sizes size = winograd_size(check, x_, padding);
  const int64_t samples = x_.size(0), outputs = weight.size(1), height = size[0], width = size[1];
  REQUIRE_VALUE(!alike || (!scale_.has_value() && !least_.has_value()), check.op,
                ": alike places read the same numbers of x alone: leave scale and least away");
  REQUIRE_VALUE(!alike || height * width <= INT32_MAX, check.op, ": alike is for maps of at most ", INT32_MAX,
                " places, got ", height * width);
  const auto dense = [](const Tensor& t) { return to_channels_last(t.resolve_neg()); };
  Tensor bias, scale, second, least;
  if (bias_.has_value()) {
    check.like("bias", *bias_, x_);
    check.sizes("bias", *bias_, {outputs});
    bias = bias_->resolve_neg().contiguous();
  }
  if (scale_.has_value()) {
    winograd_check_scale(check, *scale_, x_);
    scale = dense(*scale_);
  }
  if (second_.has_value()) {
    REQUIRE_VALUE(scale_.has_value() && scale_->sizes() == second_->sizes() && x_.size(1) % cpu::kWinogradLanes == 0,
                  check.op, ": second must be given with a scale of the same shape, for channels in multiples of ",
                  cpu::kWinogradLanes);
    winograd_check_scale(check, *second_, x_);
    second = dense(*second_);
  }
  if (least_.has_value()) {
    check.like("least", *least_, x_);
    check.sizes("least", *least_, {samples, outputs, height, width});
    least = dense(*least_);
  }
  const int64_t area = height * width;
  const Tensor y = empty_strided({samples, outputs, height, width}, {outputs * area, 1, width * outputs, outputs}, x_);
  if (y.numel() == 0) {
    return y;
  }
  prefer_huge_pages(y.mutable_data_ptr(), y.nbytes());
  const Tensor x = dense(x_);
  const auto read = [](const Tensor& t) { return t.defined() ? t.const_data_ptr<float>() : nullptr; };
  cpu::winograd_convolution({samples, x_.size(2), x_.size(3), inputs, height, width, outputs, padding[0], padding[1],
                             read(x), read(scale), scale.defined() ? samples / scale_->size(0) : 1,
                             weight.const_data_ptr<float>(), read(bias), read(least), not_negative,
                             y.mutable_data_ptr<float>(), alike, read(second)});
  return y;
}

}  // namespace fastlrp::edge
