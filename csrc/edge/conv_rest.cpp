#include "conv_rest.h"

#include <memory>
#include <utility>

#include "../common/memory.h"
#include "../cpu/conv_rest.h"
#include "require.h"

namespace fastlrp::edge {

namespace {

Tensor dense(const Tensor& tensor) { return to_channels_last(tensor.resolve_neg()); }

const float* read(const Tensor& tensor) { return tensor.defined() ? tensor.const_data_ptr<float>() : nullptr; }

// The arguments that both functions share, checked, and memory for results.
class Rest {
 public:
  cpu::ConvRest p;
  Check check;
  Sizes shape;  // of the outputs

  // `parts`: how many samples `part` has; -1 for as many as x has.
  Rest(const char* op, const Tensor& whole, const Tensor& part, const Tensor& x, const Tensor& weight,
       const OptionalTensor& factor, const Sizes& stride, const Sizes& padding, const Sizes& dilation, int64_t parts)
      : check{kCpu, op}, given_{x} {
    check.dtype("x", x, kFloat);
    check.tensor("x", x);
    REQUIRE_VALUE(x.dim() == 4, check.op, ": x must have shape (N, Ci, H, W), got ", x.sizes());
    check.like("weight", weight, x);
    REQUIRE_VALUE(weight.dim() == 4 && weight.size(1) == x.size(1) && weight.numel() > 0, check.op,
                  ": weight must have shape (Co, ", x.size(1), ", h, w), got ", weight.sizes());
    check.axes("stride", stride, 2, "x", 1);
    check.axes("padding", padding, 2, "x", 0);
    check.axes("dilation", dilation, 2, "x", 1);
    p.samples = x.size(0), p.inputs = x.size(1), p.outputs = weight.size(0);
    for (int axis = 0; axis < 2; ++axis) {
      p.size[axis] = x.size(axis + 2);
      p.kernel[axis] = weight.size(axis + 2);
      p.stride[axis] = stride[axis];
      p.padding[axis] = padding[axis];
      p.dilation[axis] = dilation[axis];
      const int64_t reach = p.size[axis] + 2 * padding[axis] - dilation[axis] * (p.kernel[axis] - 1) - 1;
      p.out_size[axis] = reach < 0 ? 0 : reach / stride[axis] + 1;
    }
    shape = {p.samples, p.outputs, p.out_size[0], p.out_size[1]};
    Sizes of_part = shape;
    of_part[0] = parts < 0 ? p.samples : parts;
    check.like("whole", whole, x);
    check.sizes("whole", whole, shape);
    check.like("part", part, x);
    check.sizes("part", part, of_part);
    if (factor.has_value()) {
      check.like("factor", *factor, x);
      check.sizes("factor", *factor, shape);
    }
    if (product(shape) > 0) {
      p.x = keep(dense(x));
      p.weight = keep(dense(weight));
      p.whole = keep(dense(whole));
      p.part = keep(dense(part));
      p.factor = factor.has_value() ? keep(dense(*factor)) : nullptr;
    }
  }

  // One number for each output; null for none.
  const float* vector(const char* name, const OptionalTensor& tensor) {
    if (!tensor.has_value()) {
      return nullptr;
    }
    check.like(name, *tensor, given_.front());
    check.sizes(name, *tensor, {p.outputs});
    return keep(tensor->resolve_neg().contiguous());
  }

  Tensor made() const {
    const int64_t area = p.out_size[0] * p.out_size[1];
    const Tensor found =
        empty_strided(shape, {p.outputs * area, 1, p.out_size[1] * p.outputs, p.outputs}, given_.front());
    if (found.numel() > 0) {
      prefer_huge_pages(found.mutable_data_ptr(), found.nbytes());
    }
    return found;
  }

 private:
  const float* keep(Tensor tensor) {
    given_.push_back(std::move(tensor));
    return read(given_.back());
  }

  std::vector<Tensor> given_;
};

std::vector<bool> flags(const bool* kept, int64_t count) { return std::vector<bool>(kept, kept + count); }

}  // namespace

std::tuple<Tensor, Tensor, std::vector<bool>> conv_rest(const Tensor& whole, const Tensor& part, const Tensor& x,
                                                        const Tensor& weight, const OptionalTensor& bias,
                                                        const OptionalTensor& factor, const Sizes& stride,
                                                        const Sizes& padding, const Sizes& dilation, double most,
                                                        double alpha, double beta, double epsilon) {
  Rest rest("conv_rest", whole, part, x, weight, factor, stride, padding, dilation, -1);
  cpu::ConvRest& p = rest.p;
  p.bias = rest.vector("bias", bias);
  const Tensor above = rest.made(), below = rest.made();
  const std::unique_ptr<bool[]> kept(new bool[p.samples]());
  if (above.numel() > 0) {
    p.most = static_cast<float>(most);
    p.alpha = static_cast<float>(alpha);
    p.beta = static_cast<float>(beta);
    p.epsilon = static_cast<float>(epsilon);
    p.above = above.mutable_data_ptr<float>();
    p.below = below.mutable_data_ptr<float>();
    cpu::conv_rest(p, kept.get());
  }
  return {above, below, flags(kept.get(), p.samples)};
}

std::tuple<Tensor, std::vector<bool>> conv_rest_of_box(const Tensor& whole, const Tensor& part, const Tensor& x,
                                                       const Tensor& weight, const OptionalTensor& shift,
                                                       const OptionalTensor& factor, const Sizes& stride,
                                                       const Sizes& padding, const Sizes& dilation, double most,
                                                       double epsilon) {
  Rest rest("conv_rest_of_box", whole, part, x, weight, factor, stride, padding, dilation, 1);
  cpu::ConvRest& p = rest.p;
  const float* of_whole = rest.vector("shift", shift);
  const Tensor found = rest.made();
  const std::unique_ptr<bool[]> kept(new bool[p.samples]());
  if (found.numel() > 0) {
    p.bias = nullptr;
    p.above = nullptr;
    p.most = static_cast<float>(most);
    p.alpha = p.beta = 1.0f;
    p.epsilon = static_cast<float>(epsilon);
    p.below = found.mutable_data_ptr<float>();
    cpu::conv_rest_of_box(p, of_whole, kept.get());
  }
  return {found, flags(kept.get(), p.samples)};
}

}  // namespace fastlrp::edge
