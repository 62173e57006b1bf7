// Which functions Python sees, under which names. What checks tensors, allocates and calls the kernels is in
// edge/<stem>.cpp and, for CUDA, edge/cuda/<stem>.cpp: the same functions of the same names, in the submodule `cuda`.
// What both devices have is declared once, in edge/<stem>.h.

#include <utility>

#include "bindings/calls.h"
#include "common/bf16_unit.h"
#include "common/build_info.h"
#include "common/isa.h"
#include "common/memory.h"
#include "common/parallel.h"
#include "edge/attention.h"
#include "edge/bits.h"
#include "edge/conv_depth.h"
#include "edge/conv_evenness.h"
#include "edge/conv_few.h"
#include "edge/conv_point.h"
#include "edge/conv_rest.h"
#include "edge/conv_winograd.h"
#include "edge/elementwise.h"
#include "edge/marks.h"
#include "edge/norm.h"
#include "edge/pool.h"
#include "edge/recurrence.h"
#include "edge/sparse.h"
#if defined(FASTLRP_WITH_CUDA) || defined(FASTLRP_EMULATE)
#define FASTLRP_BIND_CUDA 1
#include "edge/cuda/device.h"
#include "edge/cuda/elementwise.h"
#include "edge/cuda/input_rules.h"
#endif
#ifdef FASTLRP_EMULATE
#include "emulator.h"
#endif

#ifndef FASTLRP_NAME
#define FASTLRP_NAME _C
#endif

namespace {

namespace py = pybind11;
namespace edge = fastlrp::edge;

using fastlrp::bindings::release_gil;

void translate_errors() {
  py::register_local_exception_translator([](std::exception_ptr thrown) {
    try {
      std::rethrow_exception(thrown);
    } catch (const edge::TypeError& error) {
      PyErr_SetString(PyExc_TypeError, error.what());
    }
  });
}

void bind_pool(py::module_& m, const edge::PoolFunctions& pool) {
  m.def("pool_max_relevance", pool.max_relevance, py::arg("relevance"), py::arg("index"), py::arg("scale").none(true),
        py::arg("input_size"), release_gil());
  m.def("pool_ties_relevance", pool.ties_relevance, py::arg("relevance"), py::arg("input"), py::arg("output"),
        py::arg("scale").none(true), py::arg("kernel_size"), py::arg("stride"), py::arg("padding"), py::arg("dilation"),
        release_gil());
  m.def("pool_avg_relevance", pool.avg_relevance, py::arg("relevance"), py::arg("scale").none(true),
        py::arg("input_size"), py::arg("kernel_size"), py::arg("stride"), py::arg("padding"), py::arg("ceil_mode"),
        py::arg("count_include_pad"), py::arg("divisor_override").none(true), release_gil());
  m.def("pool_adaptive_avg_relevance", pool.adaptive_avg_relevance, py::arg("relevance"), py::arg("scale").none(true),
        py::arg("input_size"), release_gil());
}

[[maybe_unused]] void bind_attention(py::module_& m, decltype(&edge::attention_relevance) relevance,
                                     decltype(&edge::attention_relevance_into) into,
                                     decltype(&edge::attention_value_relevance) of_values) {
  m.def("attention_relevance_into", into, py::arg("c_query"), py::arg("c_key"), py::arg("c_value"),
        py::arg("relevance"), py::arg("query"), py::arg("key"), py::arg("value"), py::arg("output"), py::arg("log_sum"),
        py::arg("mask").none(true), py::arg("causal"), py::arg("scale"), py::arg("cap"), py::arg("share_query"),
        py::arg("share_key"), py::arg("share_value"), py::arg("epsilon"), release_gil());
  m.def("attention_relevance", relevance, py::arg("relevance"), py::arg("query"), py::arg("key"), py::arg("value"),
        py::arg("output"), py::arg("log_sum"), py::arg("mask").none(true), py::arg("causal"), py::arg("scale"),
        py::arg("cap"), py::arg("share_query"), py::arg("share_key"), py::arg("share_value"), py::arg("epsilon"),
        release_gil());
  m.def("attention_value_relevance", of_values, py::arg("relevance"), py::arg("query"), py::arg("key"),
        py::arg("log_sum"), py::arg("mask").none(true), py::arg("causal"), py::arg("scale"), py::arg("cap"),
        release_gil());
}

[[maybe_unused]] void bind_recurrence(py::module_& m, decltype(&edge::recurrence_relevance) relevance) {
  m.def("recurrence_relevance", relevance, py::arg("relevance"), py::arg("final").none(true), py::arg("weight"),
        py::arg("entry"), py::arg("scale").none(true), py::arg("carry").none(true), py::arg("gates").none(true),
        py::arg("output_entry").none(true), py::arg("output_scale").none(true), py::arg("reset").none(true),
        py::arg("projection").none(true), py::arg("input_weight").none(true), py::arg("spread").none(true),
        release_gil());
}

[[maybe_unused]] void bind_norm(py::module_& m, decltype(&edge::norm_relevance) relevance) {
  m.def("norm_relevance", relevance, py::arg("relevance"), py::arg("gain").none(true), py::arg("inverse_sigma"),
        py::arg("centre"), release_gil());
}

[[maybe_unused]] void bind_winograd(py::module_& m, decltype(&edge::winograd_pack) pack,
                                    decltype(&edge::winograd_convolution) convolution) {
  m.def("winograd_even", &edge::winograd_even, py::arg("x"), py::arg("scale").none(true), py::arg("padding"),
        py::arg("most"), release_gil());
  m.def("winograd_few_small", &edge::winograd_few_small, py::arg("x"), py::arg("weight"), py::arg("bias").none(true),
        py::arg("divided"), py::arg("padding"), py::arg("most"), release_gil());
  m.def("winograd_tells", &edge::winograd_tells, py::arg("y"), py::arg("x"), py::arg("scale"), py::arg("times"),
        py::arg("sizes"), py::arg("padding"), py::arg("most"), release_gil());
  m.def("winograd_repair", &edge::winograd_repair, py::arg("y"), py::arg("x"), py::arg("weight"),
        py::arg("bias").none(true), py::arg("divided"), py::arg("padding"), py::arg("most"), release_gil());
  m.def("conv_depth_transposed", &edge::conv_depth_transposed, py::arg("x"), py::arg("scale").none(true),
        py::arg("weight"), py::arg("positive").none(true), py::arg("sign").none(true), py::arg("size"),
        py::arg("stride"), py::arg("padding"), py::arg("dilation"), release_gil());
  m.def("conv_few_transposed", &edge::conv_few_transposed, py::arg("x"), py::arg("scale").none(true), py::arg("weight"),
        py::arg("size"), py::arg("stride"), py::arg("padding"), py::arg("narrow") = false, release_gil());
  m.def("conv_point_pack", &edge::conv_point_pack, py::arg("matrices"), py::arg("full") = false, release_gil());
  m.def("conv_point", &edge::conv_point, py::arg("x"), py::arg("packed"), py::arg("bias").none(true), py::arg("stride"),
        py::arg("not_negative"), release_gil());
  m.def("conv_point_coefficients", &edge::conv_point_coefficients, py::arg("x"), py::arg("packed"),
        py::arg("bias").none(true), py::arg("z").none(true), py::arg("factor").none(true), py::arg("rule"),
        py::arg("alpha"), py::arg("epsilon"), py::arg("stride"), py::arg("times") = py::none(), release_gil());
  m.def("conv_point_transposed", &edge::conv_point_transposed, py::arg("relevance"), py::arg("coefficients"),
        py::arg("packed"), py::arg("size"), py::arg("stride"), py::arg("in_full") = false, release_gil());
  m.def("conv_point_chosen", &edge::conv_point_chosen, py::arg("relevance"), py::arg("coefficients"), py::arg("above"),
        py::arg("below"), py::arg("sign"), py::arg("stride"), release_gil());
  m.def("conv_rest", &edge::conv_rest, py::arg("whole"), py::arg("part"), py::arg("x"), py::arg("weight"),
        py::arg("bias").none(true), py::arg("factor").none(true), py::arg("stride"), py::arg("padding"),
        py::arg("dilation"), py::arg("most"), py::arg("alpha"), py::arg("beta"), py::arg("epsilon"), release_gil());
  m.def("conv_rest_of_box", &edge::conv_rest_of_box, py::arg("whole"), py::arg("part"), py::arg("x"), py::arg("weight"),
        py::arg("shift").none(true), py::arg("factor").none(true), py::arg("stride"), py::arg("padding"),
        py::arg("dilation"), py::arg("most"), py::arg("epsilon"), release_gil());
  m.def("winograd_pack", pack, py::arg("weight"), py::arg("turned") = false, release_gil());
  m.def("winograd_convolution", convolution, py::arg("x"), py::arg("weight"), py::arg("bias").none(true),
        py::arg("scale").none(true), py::arg("least").none(true), py::arg("padding"), py::arg("not_negative") = false,
        py::arg("alike") = false, py::arg("second") = py::none(), release_gil());
}

void bind_elementwise(py::module_& m, edge::ElementwiseCoefficients& coefficients) {
  m.def("elementwise_coefficients", coefficients, py::arg("z"), py::arg("positive").none(true),
        py::arg("negative").none(true), py::arg("factor").none(true), py::arg("rule"), py::arg("alpha"),
        py::arg("epsilon"), release_gil());
}

[[maybe_unused]] void bind_scaled(py::module_& m, decltype(&edge::elementwise_scaled) scaled) {
  m.def("elementwise_scaled", scaled, py::arg("relevance"), py::arg("coefficient"), release_gil());
}

void bind_sparse_pattern(py::module_& m, const edge::SparsePatternFunctions& sparse) {
  m.def("sparse_pattern", sparse.pattern, py::arg("masks"), release_gil());
  m.def("sparse_from_dense", sparse.from_dense, py::arg("relevance"), py::arg("pattern"), release_gil());
  m.def("sparse_to_dense", sparse.to_dense, py::arg("source"), py::arg("batch"), py::arg("targets"), py::arg("size"),
        release_gil());
  m.def("sparse_sum", sparse.sum, py::arg("sources"), py::arg("pattern"), py::arg("batch"), py::arg("targets"),
        release_gil());
  m.def("sparse_winners", sparse.winners, py::arg("index"), py::arg("pooled"), py::arg("input_size"),
        py::arg("kernel_size"), py::arg("stride"), py::arg("padding"), py::arg("dilation"), release_gil());
  m.def("sparse_windows", sparse.windows, py::arg("wanted"), py::arg("pooled"), py::arg("batch"), py::arg("input_size"),
        py::arg("output_size"), py::arg("kernel_size"), py::arg("stride"), py::arg("padding"), release_gil());
  m.def("sparse_gather_sum", sparse.gather_sum, py::arg("source"), py::arg("starts"), py::arg("rows"),
        py::arg("targets"), release_gil());
}

void bind_sparse_conv(py::module_& m, const edge::SparseConvFunctions& conv) {
  m.def("sparse_pack", conv.pack, py::arg("weight"), release_gil());
  m.def(
      "sparse_conv_relevance",
      [relevance = conv.relevance](
          edge::RowTensors arriving, int64_t batch, int64_t targets, std::vector<edge::Tensor> coefficients,
          std::vector<edge::Tensor> weights, edge::Sizes channels_per_group, edge::PatternTensors leaving,
          edge::Sizes input_size, edge::Sizes output_size, edge::Sizes kernel_size, edge::Sizes stride,
          edge::Sizes padding, edge::Sizes dilation, bool transposed, std::optional<int64_t> channels,
          std::vector<edge::Tensor> factors, std::vector<edge::SummandTensors> initial, edge::OptionalTensor other,
          bool scales_leaving) {
        return relevance({std::move(arriving),
                          batch,
                          targets,
                          std::move(coefficients),
                          std::move(weights),
                          std::move(channels_per_group),
                          std::move(leaving),
                          {std::move(input_size), std::move(output_size), std::move(kernel_size), std::move(stride),
                           std::move(padding), std::move(dilation), transposed},
                          channels,
                          std::move(factors),
                          std::move(initial),
                          std::move(other),
                          scales_leaving});
      },
      py::arg("arriving"), py::arg("batch"), py::arg("targets"), py::arg("coefficients"), py::arg("weights"),
      py::arg("channels_per_group"), py::arg("leaving"), py::arg("input_size"), py::arg("output_size"),
      py::arg("kernel_size"), py::arg("stride"), py::arg("padding"), py::arg("dilation"), py::arg("transposed"),
      py::arg("channels").none(true), py::arg("factors"), py::arg("initial"), py::arg("other") = py::none(),
      py::arg("scales_leaving") = false, release_gil());
}

[[maybe_unused]] void bind_bits(py::module_& m) {
  using Tensors = std::vector<edge::Tensor>;
  py::class_<edge::Bits>(m, "Bits")
      .def(py::init<Tensors, Tensors>(), py::arg("parts"), py::arg("rows"))
      .def("look", &edge::Bits::look, py::arg("first"), py::arg("bytes"), release_gil());
  py::class_<edge::Marks>(m, "Marks")
      .def(py::init<Tensors, Tensors>(), py::arg("placed"), py::arg("counted"))
      .def("hold", &edge::Marks::hold);
  m.def("all_finite", [](py::handle tensor) {
    static const py::handle type = py::object(py::module_::import("torch").attr("Tensor")).release();
    return py::isinstance(tensor, type) ? edge::all_finite(tensor.ptr()) : std::nullopt;
  });
}

#ifdef FASTLRP_BIND_CUDA
void bind_cuda(py::module_ m) {
  namespace cuda = fastlrp::edge::cuda;
  bind_pool(m, cuda::kPool);
  bind_elementwise(m, cuda::elementwise_coefficients);
  m.def("elementwise_pooled_coefficients", &cuda::elementwise_pooled_coefficients, py::arg("z"),
        py::arg("positive").none(true), py::arg("negative").none(true), py::arg("rule"), py::arg("alpha"),
        py::arg("epsilon"), py::arg("kernel_size"), py::arg("stride"), py::arg("padding"), py::arg("dilation"),
        py::arg("ceil_mode"), release_gil());
  m.def("input_relevance", &cuda::input_relevance, py::arg("relevance"), py::arg("weights"), py::arg("coefficients"),
        py::arg("multipliers"), py::arg("input_size"), py::arg("stride"), py::arg("padding"), py::arg("dilation"),
        py::arg("groups"), py::arg("reduce"), release_gil());
  m.def("input_flat_relevance", &cuda::input_flat_relevance, py::arg("relevance"), py::arg("u"), py::arg("channels"),
        py::arg("kernel_size"), py::arg("input_size"), py::arg("stride"), py::arg("padding"), py::arg("dilation"),
        py::arg("reduce"), release_gil());
  bind_sparse_pattern(m, cuda::kSparsePattern);
  bind_sparse_conv(m, cuda::kSparseConv);
  m.attr("merges_products") = true;  // of sparse_conv_relevance
  m.def("reads_on_host", &cuda::reads_on_host);
}
#endif

}  // namespace

#ifdef FASTLRP_EMULATE
PYBIND11_MODULE(FASTLRP_NAME, m) {
  translate_errors();
  bind_cuda(m);
  m.def("set_order", &emulator::set_order, py::arg("order"), py::arg("seed"));
  m.def("launches", &emulator::launches);
  m.def("kernels", &emulator::kernels);
  m.def("check_aligned", [](int64_t address, size_t bytes) {  // in a kernel, of one thread
    emulator::run({1, 1, 1}, {1, 1, 1}, 0,
                  [=] { emulator::check_aligned(reinterpret_cast<const void*>(address), bytes); });
  });
}
#else
PYBIND11_MODULE(FASTLRP_NAME, m) {
  translate_errors();
  bind_pool(m, edge::kPool);
  bind_elementwise(m, edge::elementwise_coefficients);
  bind_scaled(m, &edge::elementwise_scaled);
  m.def("elementwise_rectified_sum", &edge::elementwise_rectified_sum, py::arg("first"), py::arg("second"),
        py::arg("epsilon").none(true), release_gil());
  bind_attention(m, &edge::attention_relevance, &edge::attention_relevance_into, &edge::attention_value_relevance);
  bind_norm(m, &edge::norm_relevance);
  bind_recurrence(m, &edge::recurrence_relevance);
  bind_winograd(m, &edge::winograd_pack, &edge::winograd_convolution);
  bind_bits(m);
  bind_sparse_pattern(m, edge::kSparsePattern);
  bind_sparse_conv(m, edge::kSparseConv);
  m.attr("takes_transposes") = true;  // of a linear layer's weight, by sparse_conv_relevance
  m.def("sparse_pack_pairs", &edge::sparse_pack_pairs, py::arg("weight"), release_gil());
  m.def("sparse_release", [] { fastlrp::BufferPool::shared().trim(); });
  m.def("sparse_kept_bytes", [] { return fastlrp::BufferPool::shared().free_bytes(); });
  m.def("build_info", &fastlrp::build_info);
  m.def("available_isas", &fastlrp::available_isas);
  m.def("isa", [] { return fastlrp::isa_name(fastlrp::isa()); });
  m.def("set_isa", &fastlrp::set_isa, py::arg("name"));
  m.def("available_bf16_units", &fastlrp::available_bf16_units);
  m.def("bf16_unit", [] { return fastlrp::bf16_unit_name(fastlrp::bf16_unit()); });
  m.def("set_bf16_unit", &fastlrp::set_bf16_unit, py::arg("name"));
#ifdef FASTLRP_BIND_CUDA
  bind_cuda(m.def_submodule("cuda"));
#endif
}
#endif
