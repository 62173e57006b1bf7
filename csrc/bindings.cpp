// The only file that knows pybind11. What checks tensors, allocates and calls the kernels is in edge/<stem>.cpp.

#include <ATen/Parallel.h>
#include <torch/csrc/utils/pybind.h>

#include <map>
#include <string>

#include "common/isa.h"
#include "common/memory.h"
#include "common/parallel.h"
#include "edge/elementwise.h"
#include "edge/pool.h"
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
  m.def("pool_max_relevance", &fastlrp::edge::pool_max_relevance, py::arg("relevance"), py::arg("index"),
        py::arg("scale").none(true), py::arg("input_size"), release_gil());
  m.def("pool_ties_relevance", &fastlrp::edge::pool_ties_relevance, py::arg("relevance"), py::arg("input"),
        py::arg("output"), py::arg("scale").none(true), py::arg("kernel_size"), py::arg("stride"), py::arg("padding"),
        py::arg("dilation"), release_gil());
  m.def("pool_avg_relevance", &fastlrp::edge::pool_avg_relevance, py::arg("relevance"), py::arg("scale").none(true),
        py::arg("input_size"), py::arg("kernel_size"), py::arg("stride"), py::arg("padding"), py::arg("ceil_mode"),
        py::arg("count_include_pad"), py::arg("divisor_override").none(true), release_gil());
  m.def("pool_adaptive_avg_relevance", &fastlrp::edge::pool_adaptive_avg_relevance, py::arg("relevance"),
        py::arg("scale").none(true), py::arg("input_size"), release_gil());
  m.def("elementwise_coefficients", &fastlrp::edge::elementwise_coefficients, py::arg("z"),
        py::arg("positive").none(true), py::arg("negative").none(true), py::arg("factor").none(true), py::arg("rule"),
        py::arg("alpha"), py::arg("epsilon"), release_gil());
  m.def("sparse_pattern", &fastlrp::edge::sparse_pattern, py::arg("masks"), release_gil());
  m.def("sparse_from_dense", &fastlrp::edge::sparse_from_dense, py::arg("relevance"), py::arg("pattern"),
        release_gil());
  m.def("sparse_to_dense", &fastlrp::edge::sparse_to_dense, py::arg("source"), py::arg("batch"), py::arg("targets"),
        py::arg("size"), release_gil());
  m.def("sparse_sum", &fastlrp::edge::sparse_sum, py::arg("sources"), py::arg("pattern"), py::arg("batch"),
        py::arg("targets"), release_gil());
  m.def("sparse_winners", &fastlrp::edge::sparse_winners, py::arg("index"), py::arg("pooled"), py::arg("input_size"),
        py::arg("kernel_size"), py::arg("stride"), py::arg("padding"), py::arg("dilation"), release_gil());
  m.def("sparse_windows", &fastlrp::edge::sparse_windows, py::arg("wanted"), py::arg("pooled"), py::arg("batch"),
        py::arg("input_size"), py::arg("output_size"), py::arg("kernel_size"), py::arg("stride"), py::arg("padding"),
        release_gil());
  m.def("sparse_gather_sum", &fastlrp::edge::sparse_gather_sum, py::arg("source"), py::arg("starts"), py::arg("rows"),
        py::arg("targets"), release_gil());
  m.def("sparse_release", [] { fastlrp::BufferPool::shared().trim(); });
  m.def("sparse_kept_bytes", [] { return fastlrp::BufferPool::shared().free_bytes(); });
  m.def("sparse_pack", &fastlrp::edge::sparse_pack, py::arg("weight"), release_gil());
  m.def("sparse_conv_relevance", &fastlrp::edge::sparse_conv_relevance, py::arg("arriving"), py::arg("batch"),
        py::arg("targets"), py::arg("coefficients"), py::arg("weights"), py::arg("channels_per_group"),
        py::arg("leaving"), py::arg("input_size"), py::arg("output_size"), py::arg("kernel_size"), py::arg("stride"),
        py::arg("padding"), py::arg("dilation"), py::arg("transposed"), py::arg("channels").none(true),
        py::arg("factors"), py::arg("initial"), py::arg("other") = py::none(), release_gil());
  m.def("build_info", &fastlrp::build_info);
  m.def("available_isas", &fastlrp::available_isas);
  m.def("isa", [] { return fastlrp::isa_name(fastlrp::isa()); });
  m.def("set_isa", &fastlrp::set_isa, py::arg("name"));
}
