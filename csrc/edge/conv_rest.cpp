#include "conv_rest.h"

#include <memory>

#include "../common/memory.h"
#include "../cpu/conv_rest.h"
#include "require.h"

namespace fastlrp::edge {

std::tuple<Tensor, Tensor, std::vector<bool>> conv_rest(const Tensor& whole_, const Tensor& part_, const Tensor& x_,
                                                        const Tensor& weight_, const OptionalTensor& bias_,
                                                        const OptionalTensor& factor_, const Sizes& stride,
                                                        const Sizes& padding, const Sizes& dilation, double most,
                                                        double alpha, double beta, double epsilon) {
  const Check check{kCpu, "conv_rest"};
  check.dtype("x", x_, kFloat);
  check.tensor("x", x_);
  REQUIRE_VALUE(x_.dim() == 4, check.op, ": x must have shape (N, Ci, H, W), got ", x_.sizes());
  check.like("weight", weight_, x_);
  REQUIRE_VALUE(weight_.dim() == 4 && weight_.size(1) == x_.size(1) && weight_.numel() > 0, check.op,
                ": weight must have shape (Co, ", x_.size(1), ", h, w), got ", weight_.sizes());
  check.axes("stride", stride, 2, "x", 1);
  check.axes("padding", padding, 2, "x", 0);
  check.axes("dilation", dilation, 2, "x", 1);
  const int64_t samples = x_.size(0), outputs = weight_.size(0);
  cpu::ConvRest p{samples, x_.size(1), outputs};
  for (int axis = 0; axis < 2; ++axis) {
    p.size[axis] = x_.size(axis + 2);
    p.kernel[axis] = weight_.size(axis + 2);
    p.stride[axis] = stride[axis];
    p.padding[axis] = padding[axis];
    p.dilation[axis] = dilation[axis];
    const int64_t reach = p.size[axis] + 2 * padding[axis] - dilation[axis] * (p.kernel[axis] - 1) - 1;
    p.out_size[axis] = reach < 0 ? 0 : reach / stride[axis] + 1;
  }
  const Sizes shape{samples, outputs, p.out_size[0], p.out_size[1]};
  check.like("whole", whole_, x_);
  check.sizes("whole", whole_, shape);
  check.like("part", part_, x_);
  check.sizes("part", part_, shape);
  const auto dense = [](const Tensor& t) { return to_channels_last(t.resolve_neg()); };
  Tensor bias, factor;
  if (bias_.has_value()) {
    check.like("bias", *bias_, x_);
    check.sizes("bias", *bias_, {outputs});
    bias = bias_->resolve_neg().contiguous();
  }
  if (factor_.has_value()) {
    check.like("factor", *factor_, x_);
    check.sizes("factor", *factor_, shape);
    factor = dense(*factor_);
  }
  const int64_t area = p.out_size[0] * p.out_size[1];
  const Sizes strides{outputs * area, 1, p.out_size[1] * outputs, outputs};
  const Tensor above = empty_strided(shape, strides, x_), below = empty_strided(shape, strides, x_);
  const std::unique_ptr<bool[]> kept(new bool[samples]());
  if (above.numel() > 0) {
    prefer_huge_pages(above.mutable_data_ptr(), above.nbytes());
    prefer_huge_pages(below.mutable_data_ptr(), below.nbytes());
    const Tensor x = dense(x_), weight = dense(weight_), whole = dense(whole_), part = dense(part_);
    const auto read = [](const Tensor& t) { return t.defined() ? t.const_data_ptr<float>() : nullptr; };
    p.x = read(x);
    p.weight = read(weight);
    p.bias = read(bias);
    p.whole = read(whole);
    p.part = read(part);
    p.factor = read(factor);
    p.most = static_cast<float>(most);
    p.alpha = static_cast<float>(alpha);
    p.beta = static_cast<float>(beta);
    p.epsilon = static_cast<float>(epsilon);
    p.above = above.mutable_data_ptr<float>();
    p.below = below.mutable_data_ptr<float>();
    cpu::conv_rest(p, kept.get());
  }
  return {above, below, std::vector<bool>(kept.get(), kept.get() + samples)};
}

}  // namespace fastlrp::edge
