#include "input_rules.h"

#include <algorithm>

#include "../../cuda/input_rules.h"
#include "../axes.h"
#include "device.h"

namespace fastlrp::edge::cuda {
namespace {

namespace kernels = fastlrp::cuda;

// More channels leave the kernel's threads too many sums, and more taps are a matrix product's work.
constexpr int64_t kMostChannels = 8, kMostTaps = 128;

// The arguments that both operations have, checked.
struct Layer {
  Check check;
  Tensor relevance;  // (B, K, Co, *outputs)
  Sizes input_size, kernel, stride, padding, dilation;
  int64_t B, K, Co;

  Layer(const char* op, const Tensor& relevance_, Ints kernel_, const Sizes& input_size_, const Sizes& stride_,
        const Sizes& padding_, const Sizes& dilation_)
      : check{kCuda, op},
        input_size(input_size_),
        kernel(kernel_.vec()),
        stride(stride_),
        padding(padding_),
        dilation(dilation_) {
    check.values("relevance", relevance_);
    REQUIRE_VALUE(relevance_.dim() >= 4 && relevance_.dim() <= 6, op,
                  ": relevance must have shape (B, K, C, *S') with one to three spatial axes, got ",
                  relevance_.sizes());
    relevance = relevance_.resolve_neg();
    B = relevance.size(0), K = relevance.size(1), Co = relevance.size(2);
    geometry("input_size", input_size, 0);
    geometry("kernel_size", kernel, 1);
    geometry("stride", stride, 1);
    geometry("padding", padding, 0);
    geometry("dilation", dilation, 1);
    geometry("the size of relevance", output_size(), 0);
    check.elements("input_size", 1, input_size);
    check.elements("the size of relevance", 1, output_size());
    check.elements("kernel_size", 1, kernel);
  }

  Ints output_size() const { return relevance.sizes().slice(3); }

  void geometry(const char* name, Ints values, int64_t least) const {
    check.axes(name, values, output_size().size(), "relevance", least);
  }

  void fill(Axis (&axes)[3]) const {
    const auto made = three_axes<Axis>(check, "relevance", relevance, input_size.size(), Axis(), [&](size_t i) {
      return Axis(input_size[i], output_size()[i], kernel[i], stride[i], padding[i], dilation[i]);
    });
    std::copy(made.begin(), made.end(), axes);
  }

  // A tensor that goes with the relevance, checked.
  Tensor argument(const std::string& name, const Tensor& tensor, const Sizes& size) const {
    check.like(name.c_str(), tensor, relevance);
    check.sizes(name.c_str(), tensor, size);
    return tensor.resolve_neg();
  }

  bool channels_last() const { return Co > 1 && relevance.stride(2) == 1; }

  // A coefficient in the relevance's memory order: each target reads it again.
  Tensor coefficient(const std::string& name, const Tensor& tensor) const {
    const Tensor u = argument(name, tensor, with({B, Co}, output_size()));
    const bool last = Co > 1 && u.stride(1) == 1;
    return last == channels_last() ? u : ordered(u);
  }

  Tensor ordered(const Tensor& u) const { return channels_last() ? to_channels_last(u) : u.contiguous(); }

  // (B, K, channels, *input_size), channels innermost in memory
  Tensor empty_out(int64_t channels) const {
    Sizes memory = with({B, K}, input_size);
    memory.push_back(channels);
    return empty(memory, relevance).movedim(-1, 2);
  }
};

// Of the leading axes and of three spatial ones; 0 for those that the tensor lacks.
template <int N>
void set_strides(int64_t (&strides)[N], const Tensor& tensor) {
  constexpr int leading = N - 3;
  const int axes = static_cast<int>(tensor.dim()) - leading;
  for (int n = 0; n < N; ++n) {
    const int axis = n < leading ? n : n - (3 - axes);
    strides[n] = n < leading || axis >= leading ? tensor.stride(axis) : 0;
  }
}

// The same values with the same strides.
template <class Change>
void make_alike(std::vector<Tensor>& tensors, const Change& change) {
  const bool alike =
      std::all_of(tensors.begin(), tensors.end(), [&](const Tensor& t) { return t.strides() == tensors[0].strides(); });
  if (!alike) {
    std::transform(tensors.begin(), tensors.end(), tensors.begin(), change);
  }
}

// What an edge function for the kernel has looked at.
struct Terms {
  std::vector<Tensor> weights, coefficients;  // coefficients: of each term
  std::vector<OptionalTensor> multipliers;
  int64_t groups, channels;
  bool reduce;
};

bool is_for_the_kernel(const Layer& layer, const Terms& terms) {
  return terms.groups == 1 && terms.channels <= kMostChannels && product(layer.kernel) <= kMostTaps;
}

Tensor composed(const Layer& layer, const Terms& terms) {
  const Sizes inputs = with({layer.B * layer.K, terms.channels}, layer.input_size);
  const Sizes whole = with({layer.B, layer.K, terms.channels}, layer.input_size);
  const Tensor relevance = layer.relevance.call("detach");
  Tensor total;
  for (size_t j = 0; j < terms.weights.size(); ++j) {
    const Tensor scaled = relevance.call("mul", {terms.coefficients[j].call("detach").unsqueeze(1)});
    const Tensor rows = scaled.call("flatten", {0, 1});
    const Tensor part =
        input_gradient(rows, inputs, terms.weights[j], layer.stride, layer.padding, layer.dilation, terms.groups)
            .reshape(whole);
    if (terms.multipliers[j].has_value()) {
      part.call("mul_", {terms.multipliers[j]->call("detach").unsqueeze(1)});
    }
    total = total.defined() ? total.call("add_", {part}) : part;
  }
  return terms.reduce ? total.call("sum", {2, true}) : total;
}

template <class T>
kernels::InputRelevance<T> kernel_arguments(const Layer& layer, const Terms& terms,
                                            const std::vector<Tensor>& coefficients,
                                            const std::vector<int32_t>& coefficient_of,
                                            const std::vector<Tensor>& multipliers, const Tensor& out) {
  kernels::InputRelevance<T> p{};
  p.relevance = data_of<T>(layer.relevance);
  set_strides(p.strides, layer.relevance);
  set_strides(p.coefficient_strides, coefficients[0]);
  p.coefficient_count = static_cast<int32_t>(coefficients.size());
  for (size_t n = 0; n < coefficients.size(); ++n) {
    p.coefficients[n] = data_of<T>(coefficients[n]);
  }
  p.terms = static_cast<int32_t>(terms.weights.size());
  auto multiplier = multipliers.begin();
  for (size_t j = 0; j < terms.weights.size(); ++j) {
    p.weights[j] = data_of<T>(terms.weights[j]);
    p.coefficient_of[j] = coefficient_of[j];
    if (terms.multipliers[j].has_value()) {
      set_strides(p.multiplier_strides, *multiplier);
      p.multipliers[j] = data_of<T>(*multiplier++);
    }
  }
  p.out = data_of<T>(out);
  p.B = layer.B, p.K = layer.K, p.Co = layer.Co, p.Ci = terms.channels;
  layer.fill(p.axes);
  p.reduce = terms.reduce;
  return p;
}

}  // namespace

Tensor input_relevance(const Tensor& relevance, const std::vector<Tensor>& weights,
                       const std::vector<Tensor>& coefficients, const std::vector<OptionalTensor>& multipliers,
                       const Sizes& input_size, const Sizes& stride, const Sizes& padding, const Sizes& dilation,
                       int64_t groups, bool reduce) {
  constexpr const char* op = "input_relevance";
  const size_t count = weights.size();
  REQUIRE_VALUE(count >= 1 && count <= kernels::kMostTerms, op, ": weights must have one to ", kernels::kMostTerms,
                " entries, got ", count);
  REQUIRE_VALUE(coefficients.size() == count && multipliers.size() == count, op,
                ": coefficients and multipliers must have one entry for each of weights (", count, "), got ",
                coefficients.size(), " and ", multipliers.size());
  const Check check{kCuda, op};
  check.values("relevance", relevance);
  check.tensor("weights[0]", weights[0]);
  REQUIRE_VALUE(weights[0].dim() >= 2 && weights[0].dim() == relevance.dim() - 1, op,
                ": weights must have shape (Co, Ci / groups, *k) with one size in k for each spatial axis of "
                "relevance, got ",
                weights[0].sizes(), " and relevance ", relevance.sizes());
  const Layer layer(op, relevance, weights[0].sizes().slice(2), input_size, stride, padding, dilation);
  REQUIRE_VALUE(groups >= 1 && groups <= std::max<int64_t>(1, layer.Co) && layer.Co % groups == 0, op,
                ": groups must divide the channels of relevance (", layer.Co, "), got ", groups);
  Terms terms{{}, {}, {}, groups, weights[0].size(1) * groups, reduce};
  std::vector<Tensor> different, given;
  std::vector<int32_t> coefficient_of;
  for (size_t j = 0; j < count; ++j) {
    const std::string number = "[" + std::to_string(j) + "]";
    terms.weights.push_back(
        layer.argument("weights" + number, weights[j], with({layer.Co, weights[0].size(1)}, layer.kernel)));
    const auto same = std::find_if(coefficients.begin(), coefficients.begin() + j,
                                   [&](const Tensor& other) { return other.is_same(coefficients[j]); });
    const size_t first = same - coefficients.begin();
    if (first < j) {
      coefficient_of.push_back(coefficient_of[first]);
    } else {
      coefficient_of.push_back(static_cast<int32_t>(different.size()));
      different.push_back(layer.coefficient("coefficients" + number, coefficients[j]));
    }
    terms.coefficients.push_back(different[coefficient_of[j]]);
    terms.multipliers.push_back(std::nullopt);
    if (multipliers[j].has_value()) {
      terms.multipliers[j] =
          layer.argument("multipliers" + number, *multipliers[j], with({layer.B, terms.channels}, layer.input_size));
      given.push_back(*terms.multipliers[j]);
    }
  }
  const Tensor out = layer.empty_out(reduce ? 1 : terms.channels);
  if (out.numel() == 0 || layer.relevance.numel() == 0 || terms.channels == 0) {
    return out.zero_();
  }
  return on_device(layer.relevance, [&](Stream stream) {
    if (!is_for_the_kernel(layer, terms)) {
      return composed(layer, terms);
    }
    make_alike(different, [&](const Tensor& u) { return layer.ordered(u); });
    make_alike(given, [](const Tensor& m) { return m.contiguous(); });
    for (Tensor& weight : terms.weights) {
      weight = weight.contiguous();
    }
    with_type(layer.relevance.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      kernels::input_relevance(kernel_arguments<T>(layer, terms, different, coefficient_of, given, out), stream);
    });
    return out;
  });
}

Tensor input_flat_relevance(const Tensor& relevance, const Tensor& u_, int64_t channels, const Sizes& kernel_size,
                            const Sizes& input_size, const Sizes& stride, const Sizes& padding, const Sizes& dilation,
                            bool reduce) {
  constexpr const char* op = "input_flat_relevance";
  const Layer layer(op, relevance, kernel_size, input_size, stride, padding, dilation);
  layer.check.not_negative("channels", channels);
  const Tensor u = layer.coefficient("u", u_);
  const Tensor out = layer.empty_out(reduce ? 1 : channels);
  if (out.numel() == 0 || layer.relevance.numel() == 0) {
    return out.zero_();
  }
  const ScalarType dtype = layer.relevance.scalar_type();
  return on_device(layer.relevance, [&](Stream stream) {
    const Tensor summed =
        empty(with({layer.B, layer.K}, layer.output_size()), layer.relevance, dtype == kDouble ? dtype : kFloat);
    with_type(dtype, [&](auto zero) {
      using T = decltype(zero);
      kernels::InputFlat<T> p{};
      p.relevance = data_of<T>(layer.relevance);
      set_strides(p.strides, layer.relevance);
      p.u = data_of<T>(u);
      set_strides(p.u_strides, u);
      p.summed = data_of<kernels::Accumulate<T>>(summed);
      p.out = data_of<T>(out);
      p.B = layer.B, p.K = layer.K, p.Co = layer.Co, p.channels = out.size(2);
      layer.fill(p.axes);
      p.factor = reduce ? static_cast<double>(channels) : 1.0;
      kernels::input_flat_relevance(p, stream);
    });
    return out;
  });
}

}  // namespace fastlrp::edge::cuda
