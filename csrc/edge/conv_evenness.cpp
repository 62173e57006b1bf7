#include "conv_evenness.h"

#include <memory>

#include "../cpu/conv_evenness.h"
#include "conv_winograd_arguments.h"
#include "require.h"

namespace fastlrp::edge {
namespace {

Tensor channels_last(const Tensor& tensor) { return to_channels_last(tensor.resolve_neg()); }

// Rows and columns of the result.
Sizes size_of(const Check& check, const Tensor& x, const Sizes& padding) {
  check.dtype("x", x, kFloat);
  check.tensor("x", x);
  REQUIRE_VALUE(x.dim() == 4 && x.size(1) % cpu::kWinogradLanes == 0, check.op,
                ": x must have shape (N, Ci, H, W) with channels in multiples of ", cpu::kWinogradLanes, ", got ",
                x.sizes());
  return winograd_size(check, x, padding);
}

// The arguments of a repair, and what its pointers lie in.
struct Repair {
  Tensor x, weight, bias, divided;
  cpu::WinogradRepair p;
};

Repair repair_of(const Check& check, const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                 const Tensor& divided, const Sizes& padding, double most) {
  const Sizes size = size_of(check, x, padding);
  check.like("weight", weight, x);
  REQUIRE_VALUE(weight.dim() == 4 && weight.size(1) == x.size(1) && weight.size(2) == 3 && weight.size(3) == 3 &&
                    weight.size(0) > 0 && weight.size(0) % cpu::kWinogradLanes == 0,
                check.op, ": weight must have shape (Co, ", x.size(1), ", 3, 3) with Co in multiples of ",
                cpu::kWinogradLanes, ", got ", weight.sizes());
  const int64_t outputs = weight.size(0);
  check.like("divided", divided, x);
  check.sizes("divided", divided, {x.size(0), outputs, size[0], size[1]});
  Repair repair{channels_last(x), channels_last(weight), {}, channels_last(divided), {}};
  if (bias.has_value()) {
    check.like("bias", *bias, x);
    check.sizes("bias", *bias, {outputs});
    repair.bias = bias->resolve_neg().contiguous();
  }
  const auto read = [](const Tensor& t) { return t.defined() ? t.const_data_ptr<float>() : nullptr; };
  repair.p = {x.size(0),
              x.size(2),
              x.size(3),
              x.size(1),
              size[0],
              size[1],
              outputs,
              padding[0],
              padding[1],
              read(repair.x),
              read(repair.weight),
              read(repair.bias),
              read(repair.divided),
              static_cast<float>(most),
              nullptr};
  return repair;
}

}  // namespace

std::vector<bool> winograd_tells(const Tensor& y_, const Tensor& x_, const Tensor& scale_, const Tensor& times_,
                                 const Tensor& sizes_, const Sizes& padding, double most) {
  const Check check{kCpu, "winograd_tells"};
  const Sizes size = size_of(check, x_, padding);
  const int64_t samples = x_.size(0), groups = scale_.dim() == 4 ? scale_.size(0) : 0;
  winograd_check_scale(check, scale_, x_);
  check.like("sizes", sizes_, x_);
  const int64_t outputs = sizes_.numel();
  REQUIRE_VALUE(sizes_.dim() == 1 && outputs > 0 && outputs % cpu::kWinogradLanes == 0, check.op,
                ": sizes must have shape (Co) with Co in multiples of ", cpu::kWinogradLanes, ", got ", sizes_.sizes());
  check.like("y", y_, x_);
  check.sizes("y", y_, {samples, outputs, size[0], size[1]});
  check.like("times", times_, x_);
  check.sizes("times", times_, {groups, outputs, size[0], size[1]});
  const std::unique_ptr<bool[]> told(new bool[samples]());
  if (y_.numel() > 0) {
    const Tensor x = channels_last(x_), scale = channels_last(scale_), times = channels_last(times_);
    Tensor y = channels_last(y_);
    const Tensor sizes = sizes_.resolve_neg().contiguous();
    cpu::Winograd p{samples, x.size(2), x.size(3),  x.size(1),  size[0],
                    size[1], outputs,   padding[0], padding[1], x.const_data_ptr<float>()};
    p.scale = scale.const_data_ptr<float>();
    p.targets = samples / groups;
    p.y = y.mutable_data_ptr<float>();
    cpu::winograd_tells(p, {times.const_data_ptr<float>(), sizes.const_data_ptr<float>()}, static_cast<float>(most),
                        told.get());
  }
  return std::vector<bool>(told.get(), told.get() + samples);
}

std::vector<bool> winograd_even(const Tensor& x_, const OptionalTensor& scale_, const Sizes& padding, double most) {
  const Check check{kCpu, "winograd_even"};
  const Sizes size = size_of(check, x_, padding);
  const int64_t samples = x_.size(0);
  Tensor scale;
  if (scale_.has_value()) {
    winograd_check_scale(check, *scale_, x_);
    scale = channels_last(*scale_);
  }
  const Tensor x = channels_last(x_);
  const auto read = [](const Tensor& t) { return t.defined() ? t.const_data_ptr<float>() : nullptr; };
  const std::unique_ptr<bool[]> even(new bool[samples]());
  cpu::Winograd p{samples, x.size(2), x.size(3), x.size(1), size[0], size[1], 0, padding[0], padding[1], read(x)};
  p.scale = read(scale);
  p.targets = scale.defined() && samples > 0 ? samples / scale.size(0) : 1;
  if (x.numel() > 0) {
    cpu::winograd_even(p, static_cast<float>(most), even.get());
  }
  return std::vector<bool>(even.get(), even.get() + samples);
}

std::vector<bool> winograd_repair(const Tensor& y, const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                                  const Tensor& divided, const Sizes& padding, double most) {
  const Check check{kCpu, "winograd_repair"};
  Repair repair = repair_of(check, x, weight, bias, divided, padding, most);
  const int64_t samples = x.size(0);
  check.like("y", y, x);
  check.sizes("y", y, divided.sizes());
  REQUIRE_VALUE(channels_last_dense(y, 1) && (samples <= 1 || y.stride(0) == product(y.sizes().slice(1))), check.op,
                ": y must lie channels-last, got strides ", y.strides());
  repair.p.y = y.mutable_data_ptr<float>();
  const std::unique_ptr<bool[]> kept(new bool[samples]());
  cpu::winograd_repair(repair.p, kept.get());
  return std::vector<bool>(kept.get(), kept.get() + samples);
}

std::vector<bool> winograd_few_small(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                                     const Tensor& divided, const Sizes& padding, double most) {
  const Check check{kCpu, "winograd_few_small"};
  const Repair repair = repair_of(check, x, weight, bias, divided, padding, most);
  const std::unique_ptr<bool[]> few(new bool[x.size(0)]());
  cpu::winograd_few_small(repair.p, few.get());
  return std::vector<bool>(few.get(), few.get() + x.size(0));
}

}  // namespace fastlrp::edge
