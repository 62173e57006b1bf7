// The only file that knows pybind11 and PyTorch: checks at the edge, allocates, and hands raw pointers to the kernels.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <torch/csrc/utils/pybind.h>

#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "common/isa.h"
#include "common/memory.h"
#include "common/parallel.h"
#include "cpu/elementwise.h"
#include "cpu/pool.h"
#include "edge/sparse.h"

#if defined(__clang__)
#define FASTLRP_COMPILER __VERSION__
#else
#define FASTLRP_COMPILER "GCC " __VERSION__
#endif
#ifndef FASTLRP_FLAGS
#define FASTLRP_FLAGS "unknown"
#endif
#ifndef FASTLRP_CUDA
#define FASTLRP_CUDA "not built"
#endif

namespace fastlrp {

void parallel_for(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
  at::parallel_for(0, count, grain, body);
}

int64_t thread_count() { return at::in_parallel_region() ? 1 : at::get_num_threads(); }

namespace {

using OptionalTensor = std::optional<at::Tensor>;

void check_cpu(const char* op, const char* name, const at::Tensor& tensor) {
  TORCH_CHECK(tensor.device().is_cpu() && tensor.layout() == at::kStrided, op, ": ", name,
              " must be a dense CPU tensor, got ", tensor.layout(), " on ", tensor.device(),
              "; use backend='torch' for other tensors");
}

void check_float(const char* op, const char* name, const at::Tensor& tensor) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == at::kFloat || tensor.scalar_type() == at::kDouble, op, ": ", name,
                   " must be float32 or float64, got ", tensor.scalar_type(), "; use backend='torch' for other dtypes");
}

void check_dtype(const char* op, const char* name, const at::Tensor& tensor, at::ScalarType dtype) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == dtype, op, ": ", name, " must be ", dtype, ", got ", tensor.scalar_type());
}

void check_sizes(const char* op, const char* name, const at::Tensor& tensor, at::IntArrayRef expected) {
  TORCH_CHECK_VALUE(tensor.sizes() == expected, op, ": ", name, " must have shape ", expected, ", got ",
                    tensor.sizes());
}

// (…, C, *S) with C innermost and everything after it dense: true for channels-last memory, false for contiguous.
bool channels_last_dense(const at::Tensor& tensor, int64_t channel_axis) {
  int64_t expected = tensor.size(channel_axis);
  if (expected <= 1 || tensor.stride(channel_axis) != 1) {
    return false;
  }
  for (int64_t axis = tensor.dim() - 1; axis > channel_axis; --axis) {
    if (tensor.size(axis) > 1 && tensor.stride(axis) != expected) {
      return false;
    }
    expected *= tensor.size(axis);
  }
  return true;
}

bool contiguous_from(const at::Tensor& tensor, int64_t first_axis) {
  int64_t expected = 1;
  for (int64_t axis = tensor.dim() - 1; axis >= first_axis; --axis) {
    if (tensor.size(axis) > 1 && tensor.stride(axis) != expected) {
      return false;
    }
    expected *= tensor.size(axis);
  }
  return true;
}

at::Tensor empty_like_order(const at::Tensor& z) {
  at::Tensor result = at::empty_strided(z.sizes(), z.strides(), z.options());
  prefer_huge_pages(result.mutable_data_ptr(), result.nbytes());
  return result;
}

// (B, C, *S) -> its memory with C innermost.
at::Tensor to_channels_last(const at::Tensor& tensor) { return tensor.movedim(1, -1).contiguous().movedim(-1, 1); }

at::Tensor pool_max_relevance(const at::Tensor& relevance_, const at::Tensor& index_, const OptionalTensor& scale_,
                              const std::vector<int64_t>& input_size) {
  constexpr const char* op = "pool_max_relevance";
  check_cpu(op, "relevance", relevance_);
  check_cpu(op, "index", index_);
  check_float(op, "relevance", relevance_);
  check_dtype(op, "index", index_, at::kLong);
  TORCH_CHECK_VALUE(relevance_.dim() >= 4, op, ": relevance must have shape (B, K, C, *S'), got ", relevance_.sizes());
  TORCH_CHECK_VALUE(static_cast<int64_t>(input_size.size()) == relevance_.dim() - 3, op,
                    ": input_size must have one entry per spatial axis of relevance (", relevance_.dim() - 3, "), got ",
                    at::IntArrayRef(input_size));
  const int64_t B = relevance_.size(0), K = relevance_.size(1), C = relevance_.size(2);
  std::vector<int64_t> cache_size{B, C};
  int64_t outputs = 1, inputs = 1;
  for (size_t axis = 0; axis < input_size.size(); ++axis) {
    TORCH_CHECK_VALUE(input_size[axis] >= 0, op, ": input_size must not be negative, got ",
                      at::IntArrayRef(input_size));
    cache_size.push_back(relevance_.size(static_cast<int64_t>(axis) + 3));
    outputs *= cache_size.back();
    inputs *= input_size[axis];
  }
  check_sizes(op, "index", index_, cache_size);
  at::Tensor relevance = relevance_.resolve_neg(), index = index_, scale;
  if (scale_.has_value()) {
    check_cpu(op, "scale", *scale_);
    check_dtype(op, "scale", *scale_, relevance_.scalar_type());
    check_sizes(op, "scale", *scale_, cache_size);
    scale = scale_->resolve_neg();
  }

  // The relevance, by far the largest, decides the layout; its first axes may have any strides.
  const bool channels_last = !contiguous_from(relevance, 3) && channels_last_dense(relevance, 2);
  std::vector<int64_t> out_size{B, K, C};
  out_size.insert(out_size.end(), input_size.begin(), input_size.end());
  at::Tensor out;
  if (channels_last) {
    index = channels_last_dense(index, 1) && index.stride(0) == C * outputs ? index : to_channels_last(index);
    if (scale.defined() && !(channels_last_dense(scale, 1) && scale.stride(0) == C * outputs)) {
      scale = to_channels_last(scale);
    }
    std::vector<int64_t> memory{B, K};
    memory.insert(memory.end(), input_size.begin(), input_size.end());
    memory.push_back(C);
    out = at::empty(memory, relevance.options()).movedim(-1, 2);
  } else {
    relevance = contiguous_from(relevance, 3) ? relevance : relevance.contiguous();
    index = index.contiguous();
    scale = scale.defined() ? scale.contiguous() : scale;
    out = at::empty(out_size, relevance.options());
  }
  prefer_huge_pages(out.mutable_data_ptr(), out.nbytes());

  const auto launch = [&](auto zero) {
    using T = decltype(zero);
    const cpu::PoolMax<T> p{relevance.const_data_ptr<T>(),
                            relevance.stride(0),
                            relevance.stride(1),
                            relevance.stride(2),
                            index.const_data_ptr<int64_t>(),
                            scale.defined() ? scale.const_data_ptr<T>() : nullptr,
                            out.mutable_data_ptr<T>(),
                            B,
                            K,
                            C,
                            outputs,
                            inputs};
    return channels_last ? cpu::pool_max_relevance_channels_last(p) : cpu::pool_max_relevance(p);
  };
  relevance.scalar_type() == at::kFloat ? launch(0.0f) : launch(0.0);
  return out;
}

cpu::Rule parse_rule(const std::string& rule) {
  if (rule == "epsilon") {
    return cpu::Rule::epsilon;
  }
  if (rule == "zplus") {
    return cpu::Rule::zplus;
  }
  TORCH_CHECK_VALUE(rule == "gamma", "elementwise_coefficients: rule must be 'epsilon', 'zplus' or 'gamma', got '",
                    rule, "'");
  return cpu::Rule::gamma;
}

std::tuple<OptionalTensor, OptionalTensor> elementwise_coefficients(
    const at::Tensor& z_, const OptionalTensor& positive, const OptionalTensor& negative, const OptionalTensor& factor,
    const std::string& rule_name, double alpha, double epsilon) {
  constexpr const char* op = "elementwise_coefficients";
  const cpu::Rule rule = parse_rule(rule_name);
  check_cpu(op, "z", z_);
  check_float(op, "z", z_);
  at::Tensor z = z_.resolve_neg();
  z = z.is_non_overlapping_and_dense() ? z : z.contiguous();

  // All in z's own order of elements; a copy only for those that have another.
  const auto like_z = [&](const char* name, const OptionalTensor& tensor, bool needed) -> at::Tensor {
    if (!tensor.has_value()) {
      TORCH_CHECK_VALUE(!needed, op, ": rule '", rule_name, "' needs ", name, ", got None");
      return {};
    }
    check_cpu(op, name, *tensor);
    check_dtype(op, name, *tensor, z.scalar_type());
    check_sizes(op, name, *tensor, z.sizes());
    if (!needed) {
      return {};
    }
    const at::Tensor resolved = tensor->resolve_neg();
    return resolved.strides() == z.strides() ? resolved
                                             : at::empty_strided(z.sizes(), z.strides(), z.options()).copy_(resolved);
  };
  const bool is_epsilon = rule == cpu::Rule::epsilon, is_zplus = rule == cpu::Rule::zplus;
  const at::Tensor p = like_z("positive", positive, !is_epsilon);
  const at::Tensor n = like_z("negative", negative, rule == cpu::Rule::gamma);
  const at::Tensor f = like_z("factor", factor, factor.has_value());
  OptionalTensor u, v;
  if (!is_zplus) {
    u = empty_like_order(z);
  }
  if (!is_epsilon) {
    v = empty_like_order(z);
  }

  const auto launch = [&](auto zero) {
    using T = decltype(zero);
    const auto read = [](const at::Tensor& t) { return t.defined() ? t.const_data_ptr<T>() : nullptr; };
    const auto write = [](const OptionalTensor& t) { return t.has_value() ? t->mutable_data_ptr<T>() : nullptr; };
    cpu::elementwise_coefficients<T>(rule, {read(z), read(p), read(n), read(f), write(u), write(v), z.numel(),
                                            static_cast<T>(alpha), static_cast<T>(epsilon)});
  };
  z.scalar_type() == at::kFloat ? launch(0.0f) : launch(0.0);
  return {u, v};
}

std::map<std::string, std::string> build_info() {
  std::string isas;
  for (const std::string& name : available_isas()) {
    isas += (isas.empty() ? "" : ", ") + name;
  }
  return {{"compiler", FASTLRP_COMPILER},
          {"flags", FASTLRP_FLAGS},
#ifdef _OPENMP
          {"threads", "OpenMP, PyTorch's pool"},
#else
          {"threads", "none: built without OpenMP"},
#endif
          {"instruction sets", isas},
          {"instruction set in use", isa_name(isa())},
          {"cuda", FASTLRP_CUDA}};
}

}  // namespace
}  // namespace fastlrp

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  namespace py = pybind11;
  using release_gil = py::call_guard<py::gil_scoped_release>;
  m.def("pool_max_relevance", &fastlrp::pool_max_relevance, py::arg("relevance"), py::arg("index"),
        py::arg("scale").none(true), py::arg("input_size"), release_gil());
  m.def("elementwise_coefficients", &fastlrp::elementwise_coefficients, py::arg("z"), py::arg("positive").none(true),
        py::arg("negative").none(true), py::arg("factor").none(true), py::arg("rule"), py::arg("alpha"),
        py::arg("epsilon"), release_gil());
  m.def("sparse_pattern", &fastlrp::edge::sparse_pattern, py::arg("masks"), release_gil());
  m.def("sparse_from_dense", &fastlrp::edge::sparse_from_dense, py::arg("relevance"), py::arg("pattern"),
        release_gil());
  m.def("sparse_to_dense", &fastlrp::edge::sparse_to_dense, py::arg("source"), py::arg("batch"), py::arg("targets"),
        py::arg("size"), release_gil());
  m.def("sparse_sum", &fastlrp::edge::sparse_sum, py::arg("sources"), py::arg("pattern"), py::arg("batch"),
        py::arg("targets"), release_gil());
  m.def("sparse_winners", &fastlrp::edge::sparse_winners, py::arg("index"), py::arg("pooled"), py::arg("input_size"),
        py::arg("kernel_size"), py::arg("stride"), py::arg("padding"), py::arg("dilation"), release_gil());
  m.def("sparse_gather_sum", &fastlrp::edge::sparse_gather_sum, py::arg("source"), py::arg("starts"), py::arg("rows"),
        py::arg("targets"), release_gil());
  m.def("sparse_release", [] { fastlrp::BufferPool::shared().trim(); });
  m.def("sparse_kept_bytes", [] { return fastlrp::BufferPool::shared().free_bytes(); });
  m.def("sparse_pack", &fastlrp::edge::sparse_pack, py::arg("weight"), release_gil());
  m.def("sparse_conv_relevance", &fastlrp::edge::sparse_conv_relevance, py::arg("arriving"), py::arg("batch"),
        py::arg("targets"), py::arg("coefficients"), py::arg("weights"), py::arg("channels_per_group"),
        py::arg("leaving"), py::arg("input_size"), py::arg("output_size"), py::arg("kernel_size"), py::arg("stride"),
        py::arg("padding"), py::arg("dilation"), py::arg("transposed"), py::arg("channels").none(true),
        py::arg("factors"), py::arg("initial"), release_gil());
  m.def("build_info", &fastlrp::build_info);
  m.def("available_isas", &fastlrp::available_isas);
  m.def("isa", [] { return fastlrp::isa_name(fastlrp::isa()); });
  m.def("set_isa", &fastlrp::set_isa, py::arg("name"));
}
