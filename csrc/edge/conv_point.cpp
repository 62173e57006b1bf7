#include "conv_point.h"

#include "../common/memory.h"
#include "../cpu/conv_point.h"
#include "require.h"

namespace fastlrp::edge {
namespace {

Tensor dense(const Tensor& tensor) { return to_channels_last(tensor.resolve_neg()); }

// (…, C, H, W) of a size with C innermost.
Sizes strides_last(const Sizes& sizes) {
  Sizes strides(sizes.size());
  const size_t axes = sizes.size();
  const int64_t channels = sizes[axes - 3], area = sizes[axes - 2] * sizes[axes - 1];
  strides[axes - 1] = channels, strides[axes - 2] = sizes[axes - 1] * channels, strides[axes - 3] = 1;
  int64_t step = channels * area;
  for (size_t axis = axes - 3; axis-- > 0;) {
    strides[axis] = step;
    step *= sizes[axis];
  }
  return strides;
}

// `size` of the input of a convolution whose output has the last two sizes of `out`.
cpu::PointMaps maps_of(const Check& check, int64_t samples, Ints size, Ints out, const Sizes& stride) {
  check.axes("stride", stride, 2, "x", 1);
  cpu::PointMaps maps{samples};
  for (int axis = 0; axis < 2; ++axis) {
    maps.size[axis] = size[axis];
    maps.stride[axis] = stride[axis];
    maps.out_size[axis] = (size[axis] - 1) / stride[axis] + 1;
  }
  REQUIRE_VALUE(out.empty() || (out[out.size() - 2] == maps.out_size[0] && out[out.size() - 1] == maps.out_size[1]),
                check.op, ": a map of ", size, " with stride ", Ints(stride), " does not give one of ", out);
  return maps;
}

// The packed weight's columns, for products of `depth` numbers.
int64_t columns_of(const Check& check, const Tensor& packed, const Tensor& first, int64_t depth) {
  check.beside("packed", packed, first);
  const int64_t lanes = cpu::kPointLanes;
  REQUIRE_VALUE(packed.scalar_type() == kBFloat16 && packed.dim() == 4 && packed.size(1) * 2 == depth &&
                    packed.size(2) == lanes && packed.size(3) == 2 && packed.size(0) > 0 && packed.is_contiguous(),
                check.op, ": packed must be of conv_point_pack, for sums of ", depth, " numbers, got ",
                packed.scalar_type(), " of ", packed.sizes());
  return packed.size(0) * lanes;
}

const Bf16* narrow_data(const Tensor& tensor) { return static_cast<const Bf16*>(tensor.const_data_ptr()); }

}  // namespace

Tensor conv_point_pack(const std::vector<Tensor>& matrices) {
  const Check check{kCpu, "conv_point_pack"};
  REQUIRE_VALUE(!matrices.empty(), check.op, ": at least one matrix must be given");
  const Tensor& first = matrices.front();
  check.dtype("matrices", first, kFloat);
  check.tensor("matrices", first);
  const int64_t lanes = cpu::kPointLanes;
  REQUIRE_VALUE(first.dim() == 2 && first.numel() > 0 && first.size(0) % lanes == 0 && first.size(1) % lanes == 0,
                check.op, ": matrices must have shape (depth, columns) in multiples of ", lanes, ", got ",
                first.sizes());
  const int64_t depth = first.size(0), columns = first.size(1);
  const int64_t all = depth * static_cast<int64_t>(matrices.size());
  const Tensor packed = empty({columns / lanes, all / 2, lanes, 2}, first, kBFloat16);
  for (size_t part = 0; part < matrices.size(); ++part) {
    check.like("matrices", matrices[part], first);
    check.sizes("matrices", matrices[part], first.sizes());
    const Tensor matrix = matrices[part].resolve_neg();
    cpu::conv_point_pack(depth, columns, matrix.const_data_ptr<float>(), matrix.stride(0), matrix.stride(1),
                         depth * static_cast<int64_t>(part), all, static_cast<Bf16*>(packed.mutable_data_ptr()));
  }
  return packed;
}

CoefficientTensors conv_point_coefficients(const Tensor& x_, const Tensor& packed, const OptionalTensor& bias_,
                                           const OptionalTensor& z_, const OptionalTensor& factor_,
                                           const std::string& rule, double alpha, double epsilon, const Sizes& stride) {
  const Check check{kCpu, "conv_point_coefficients"};
  check.dtype("x", x_, kFloat);
  check.tensor("x", x_);
  REQUIRE_VALUE(x_.dim() == 4 && x_.size(2) > 0 && x_.size(3) > 0, check.op, ": x must have shape (N, Ci, H, W), got ",
                x_.sizes());
  REQUIRE_VALUE(rule == "zplus" || rule == "gamma" || rule == "raised", check.op,
                ": rule must be 'zplus', 'gamma' or 'raised', got '", rule, "'");
  const int64_t outputs = columns_of(check, packed, x_, x_.size(1));
  cpu::ConvPointSums p{maps_of(check, x_.size(0), x_.sizes().slice(2), {}, stride), x_.size(1), outputs};
  const Sizes shape{x_.size(0), outputs, p.maps.out_size[0], p.maps.out_size[1]};
  p.rule = rule == "zplus" ? Rule::zplus : rule == "gamma" ? Rule::gamma : Rule::epsilon;
  p.alpha = static_cast<float>(alpha);
  p.epsilon = static_cast<float>(epsilon);
  const auto given = [&](const char* name, const OptionalTensor& tensor) {
    if (!tensor.has_value()) {
      return Tensor();
    }
    check.like(name, *tensor, x_);
    check.sizes(name, *tensor, shape);
    return dense(*tensor);
  };
  REQUIRE_VALUE(z_.has_value() || rule == "zplus", check.op, ": z must be given for the rule '", rule, "'");
  const Tensor z = given("z", rule == "zplus" ? OptionalTensor() : z_), factor = given("factor", factor_);
  Tensor bias;
  if (bias_.has_value()) {
    check.like("bias", *bias_, x_);
    check.sizes("bias", *bias_, {outputs});
    bias = bias_->resolve_neg().contiguous();
  }
  const auto made = [&](bool wanted) {
    OptionalTensor tensor;
    if (wanted) {
      tensor = empty_strided(shape, strides_last(shape), x_);
      prefer_huge_pages(tensor->mutable_data_ptr(), tensor->nbytes());
    }
    return tensor;
  };
  const CoefficientTensors found{made(rule != "zplus"), made(rule != "raised")};
  if (product(shape) > 0) {
    const Tensor x = dense(x_);
    const auto read = [](const Tensor& t) { return t.defined() ? t.const_data_ptr<float>() : nullptr; };
    const auto write = [](const OptionalTensor& t) { return t.has_value() ? t->mutable_data_ptr<float>() : nullptr; };
    p.x = read(x), p.weight = narrow_data(packed), p.bias = read(bias), p.z = read(z), p.factor = read(factor);
    p.u = write(found.u), p.v = write(found.v);
    cpu::conv_point_sums(p);
  }
  return found;
}

Tensor conv_point_transposed(const Tensor& relevance_, const std::vector<Tensor>& coefficients_, const Tensor& packed,
                             const Sizes& size, const Sizes& stride) {
  const Check check{kCpu, "conv_point_transposed"};
  const ScalarType dtype = relevance_.scalar_type();
  REQUIRE_VALUE(relevance_.is_cpu() && (dtype == kFloat || dtype == kBFloat16), check.op,
                ": relevance must be of float32 or bfloat16 on the CPU, got ", dtype, " on ", relevance_.device());
  REQUIRE_VALUE(relevance_.dim() == 5 && relevance_.size(2) % cpu::kPointLanes == 0, check.op,
                ": relevance must have shape (B, K, Co, H', W') with Co in multiples of ", cpu::kPointLanes, ", got ",
                relevance_.sizes());
  REQUIRE_VALUE(!coefficients_.empty(), check.op, ": at least one coefficient must be given");
  check.axes("size", size, 2, "x", 1);
  const int64_t samples = relevance_.size(0), targets = relevance_.size(1), outputs = relevance_.size(2);
  const int64_t parts = static_cast<int64_t>(coefficients_.size());
  const int64_t inputs = columns_of(check, packed, relevance_, parts * outputs);
  const cpu::PointMaps maps = maps_of(check, samples, size, relevance_.sizes().slice(3), stride);
  std::vector<Tensor> coefficients;
  std::vector<const float*> data;
  for (const Tensor& coefficient : coefficients_) {
    check.dtype("coefficients", coefficient, kFloat);
    check.beside("coefficients", coefficient, relevance_);
    check.sizes("coefficients", coefficient, {samples, outputs, maps.out_size[0], maps.out_size[1]});
    coefficients.push_back(dense(coefficient));
    data.push_back(coefficients.back().const_data_ptr<float>());
  }
  const Sizes shape{samples, targets, inputs, size[0], size[1]};
  const Tensor y = empty_strided(shape, strides_last(shape), relevance_, kBFloat16);
  if (y.numel() == 0) {
    return y;
  }
  prefer_huge_pages(y.mutable_data_ptr(), y.nbytes());
  const Tensor relevance = relevance_.resolve_neg().movedim(2, -1).contiguous();
  const auto run = [&](auto zero) {
    using From = decltype(zero);
    cpu::conv_point_transposed<From>({maps, targets, outputs, inputs, parts,
                                      static_cast<const From*>(relevance.const_data_ptr()), data.data(),
                                      narrow_data(packed), static_cast<Bf16*>(y.mutable_data_ptr())});
  };
  dtype == kFloat ? run(0.0f) : run(Bf16(0.0f));
  return y;
}

}  // namespace fastlrp::edge
