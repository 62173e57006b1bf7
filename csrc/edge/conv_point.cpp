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
  const int64_t lanes = cpu::kPointLanes, together = packed.scalar_type() == kBFloat16 ? 2 : 1;
  REQUIRE_VALUE((packed.scalar_type() == kBFloat16 || packed.scalar_type() == kFloat) && packed.dim() == 4 &&
                    packed.size(1) * together == depth && packed.size(2) == lanes && packed.size(3) == together &&
                    packed.size(0) > 0 && packed.is_contiguous(),
                check.op, ": packed must be of conv_point_pack, for sums of ", depth, " numbers, got ",
                packed.scalar_type(), " of ", packed.sizes());
  return packed.size(0) * lanes;
}

template <class Number>
const Number* data_of(const Tensor& tensor) {
  return static_cast<const Number*>(tensor.const_data_ptr());
}

// What a convolution reads beside its maps, checked.
Tensor bias_of(const Check& check, const OptionalTensor& bias, const Tensor& x, int64_t outputs) {
  if (!bias.has_value()) {
    return {};
  }
  check.like("bias", *bias, x);
  check.sizes("bias", *bias, {outputs});
  return bias->resolve_neg().contiguous();
}

void check_input(const Check& check, const Tensor& x) {
  check.dtype("x", x, kFloat);
  check.tensor("x", x);
  REQUIRE_VALUE(x.dim() == 4 && x.size(2) > 0 && x.size(3) > 0, check.op, ": x must have shape (N, Ci, H, W), got ",
                x.sizes());
}

const float* read(const Tensor& tensor) { return tensor.defined() ? tensor.const_data_ptr<float>() : nullptr; }

}  // namespace

Tensor conv_point_pack(const std::vector<Tensor>& matrices, bool full) {
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
  const int64_t together = full ? 1 : 2;
  const Tensor packed = empty({columns / lanes, all / together, lanes, together}, first, full ? kFloat : kBFloat16);
  prefer_huge_pages(packed.mutable_data_ptr(), packed.nbytes());
  for (size_t part = 0; part < matrices.size(); ++part) {
    check.like("matrices", matrices[part], first);
    check.sizes("matrices", matrices[part], first.sizes());
    const Tensor matrix = matrices[part].resolve_neg();
    const auto pack = [&](auto zero) {
      cpu::conv_point_pack(depth, columns, matrix.const_data_ptr<float>(), matrix.stride(0), matrix.stride(1),
                           depth * static_cast<int64_t>(part), all,
                           static_cast<decltype(zero)*>(packed.mutable_data_ptr()));
    };
    full ? pack(0.0f) : pack(Bf16(0.0f));
  }
  return packed;
}

Tensor conv_point(const Tensor& x_, const Tensor& packed, const OptionalTensor& bias_, const Sizes& stride,
                  bool not_negative) {
  const Check check{kCpu, "conv_point"};
  check_input(check, x_);
  const int64_t outputs = columns_of(check, packed, x_, x_.size(1));
  check.dtype("packed", packed, kFloat);
  cpu::ConvPoint p{maps_of(check, x_.size(0), x_.sizes().slice(2), {}, stride), x_.size(1), outputs};
  const Sizes shape{x_.size(0), outputs, p.maps.out_size[0], p.maps.out_size[1]};
  const Tensor bias = bias_of(check, bias_, x_, outputs);
  const Tensor y = empty_strided(shape, strides_last(shape), x_);
  if (y.numel() > 0) {
    prefer_huge_pages(y.mutable_data_ptr(), y.nbytes());
    const Tensor x = dense(x_);
    p.x = read(x), p.weight = read(packed), p.bias = read(bias), p.not_negative = not_negative;
    p.y = y.mutable_data_ptr<float>();
    cpu::conv_point(p);
  }
  return y;
}

CoefficientTensors conv_point_coefficients(const Tensor& x_, const Tensor& packed, const OptionalTensor& bias_,
                                           const OptionalTensor& z_, const OptionalTensor& factor_,
                                           const std::string& rule, double alpha, double epsilon, const Sizes& stride,
                                           const OptionalTensor& times_) {
  const Check check{kCpu, "conv_point_coefficients"};
  check_input(check, x_);
  REQUIRE_VALUE(rule == "zplus" || rule == "gamma" || rule == "raised", check.op,
                ": rule must be 'zplus', 'gamma' or 'raised', got '", rule, "'");
  const int64_t outputs = columns_of(check, packed, x_, x_.size(1));
  const cpu::PointMaps maps = maps_of(check, x_.size(0), x_.sizes().slice(2), {}, stride);
  const Sizes shape{x_.size(0), outputs, maps.out_size[0], maps.out_size[1]};
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
  REQUIRE_VALUE(factor_.has_value() || !times_.has_value(), check.op, ": times must be given with a factor");
  const Tensor times = given("times", times_);
  const Tensor bias = bias_of(check, bias_, x_, outputs);
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
    const auto write = [](const OptionalTensor& t) { return t.has_value() ? t->mutable_data_ptr<float>() : nullptr; };
    const Rule which = rule == "zplus" ? Rule::zplus : rule == "gamma" ? Rule::gamma : Rule::epsilon;
    const auto run = [&](auto zero) {
      using Number = decltype(zero);
      cpu::conv_point_sums<Number>({maps, x_.size(1), outputs, read(x), data_of<Number>(packed), read(bias), which,
                                    static_cast<float>(alpha), static_cast<float>(epsilon), read(z), read(factor),
                                    read(times), write(found.u), write(found.v)});
    };
    packed.scalar_type() == kFloat ? run(0.0f) : run(Bf16(0.0f));
  }
  return found;
}

Tensor conv_point_transposed(const Tensor& relevance_, const std::vector<Tensor>& coefficients_, const Tensor& packed,
                             const Sizes& size, const Sizes& stride, bool in_full) {
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
  const bool full = packed.scalar_type() == kFloat;
  REQUIRE_VALUE(!full || dtype == kFloat, check.op, ": relevance must be of float32 beside packed of float32, got ",
                dtype);
  const Tensor y = empty_strided(shape, strides_last(shape), relevance_, in_full ? kFloat : packed.scalar_type());
  if (y.numel() == 0) {
    return y;
  }
  prefer_huge_pages(y.mutable_data_ptr(), y.nbytes());
  const Tensor relevance = relevance_.resolve_neg().movedim(2, -1).contiguous();
  const auto run = [&](auto from, auto number, auto to) {
    using From = decltype(from);
    using Number = decltype(number);
    using To = decltype(to);
    cpu::conv_point_transposed<From, Number, To>({maps, targets, outputs, inputs, parts, data_of<From>(relevance),
                                                  data.data(), data_of<Number>(packed),
                                                  static_cast<To*>(y.mutable_data_ptr())});
  };
  const auto narrow = [&](auto from) { in_full ? run(from, Bf16(0.0f), 0.0f) : run(from, Bf16(0.0f), Bf16(0.0f)); };
  full ? run(0.0f, 0.0f, 0.0f) : dtype == kFloat ? narrow(0.0f) : narrow(Bf16(0.0f));
  return y;
}

Tensor conv_point_chosen(const Tensor& relevance_, const std::vector<Tensor>& coefficients_, const Tensor& above,
                         const Tensor& below, const Tensor& sign_, const Sizes& stride) {
  const Check check{kCpu, "conv_point_chosen"};
  check.dtype("relevance", relevance_, kFloat);
  check.tensor("relevance", relevance_);
  REQUIRE_VALUE(relevance_.dim() == 5 && relevance_.size(2) > 0, check.op,
                ": relevance must have shape (B, K, Co, H', W'), got ", relevance_.sizes());
  REQUIRE_VALUE(!coefficients_.empty(), check.op, ": at least one coefficient must be given");
  check.like("sign", sign_, relevance_);
  REQUIRE_VALUE(sign_.dim() == 4 && sign_.size(0) == relevance_.size(0) && sign_.size(1) > 0 && sign_.size(2) > 0 &&
                    sign_.size(3) > 0,
                check.op, ": sign must have shape (", relevance_.size(0), ", Ci, H, W), got ", sign_.sizes());
  const int64_t samples = relevance_.size(0), targets = relevance_.size(1), outputs = relevance_.size(2);
  const int64_t inputs = sign_.size(1), parts = static_cast<int64_t>(coefficients_.size());
  for (const Tensor* packed : {&above, &below}) {
    check.dtype("packed", *packed, kFloat);
    const int64_t columns = columns_of(check, *packed, relevance_, parts * cpu::point_lanes(outputs));
    REQUIRE_VALUE(columns == cpu::point_lanes(inputs), check.op, ": packed must have ", cpu::point_lanes(inputs),
                  " columns for a sign of ", inputs, " channels, got ", columns);
  }
  const Sizes size{sign_.size(2), sign_.size(3)};
  const cpu::PointMaps maps = maps_of(check, samples, size, relevance_.sizes().slice(3), stride);
  std::vector<Tensor> coefficients;
  std::vector<const float*> data;
  for (const Tensor& coefficient : coefficients_) {
    check.like("coefficients", coefficient, relevance_);
    check.sizes("coefficients", coefficient, {samples, outputs, maps.out_size[0], maps.out_size[1]});
    coefficients.push_back(dense(coefficient));
    data.push_back(coefficients.back().const_data_ptr<float>());
  }
  const Sizes shape{samples, targets, inputs, size[0], size[1]};
  const Tensor y = empty_strided(shape, strides_last(shape), relevance_);
  if (y.numel() > 0) {
    prefer_huge_pages(y.mutable_data_ptr(), y.nbytes());
    const Tensor relevance = relevance_.resolve_neg().movedim(2, -1).contiguous(), sign = dense(sign_);
    cpu::conv_point_chosen({maps, targets, outputs, inputs, parts, read(relevance), data.data(), read(above),
                            read(below), read(sign), y.mutable_data_ptr<float>()});
  }
  return y;
}

}  // namespace fastlrp::edge
