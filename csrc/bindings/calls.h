// How a call of Python's comes over: its tensors, and what it runs under. With bindings.cpp and edge/interpreter.h the
// only files that know pybind11.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <utility>

#include "../edge/attention.h"
#include "../edge/elementwise.h"
#include "../edge/recurrence.h"
#include "../edge/sparse.h"
#if defined(FASTLRP_WITH_CUDA) || defined(FASTLRP_EMULATE)
#include "../edge/cuda/elementwise.h"
#endif

// Structs of tensors are tuples in Python.
namespace pybind11::detail {

template <>
struct type_caster<fastlrp::edge::Tensor> {
  PYBIND11_TYPE_CASTER(fastlrp::edge::Tensor, const_name("torch.Tensor"));

  bool load(handle source, bool) {
    static const handle type = object(module_::import("torch").attr("Tensor")).release();
    if (!isinstance(source, type)) {
      return false;
    }
    value = fastlrp::edge::Tensor::of(source.ptr());
    return true;
  }

  static handle cast(const fastlrp::edge::Tensor& source, return_value_policy, handle) {
    return source.defined() ? handle(static_cast<PyObject*>(source.object())).inc_ref() : none().release();
  }
};

template <class Struct>
struct struct_caster {
  using Tuple = decltype(std::declval<const Struct&>().tuple());
  PYBIND11_TYPE_CASTER(Struct, make_caster<Tuple>::name);

  bool load(handle source, bool convert) {
    make_caster<Tuple> caster;
    if (!caster.load(source, convert)) {
      return false;
    }
    value =
        std::apply([](auto&&... parts) { return Struct{std::move(parts)...}; }, cast_op<Tuple&&>(std::move(caster)));
    return true;
  }

  static handle cast(const Struct& source, return_value_policy policy, handle parent) {
    return make_caster<Tuple>::cast(source.tuple(), policy, parent);
  }
};

template <>
struct type_caster<fastlrp::edge::PatternTensors> : struct_caster<fastlrp::edge::PatternTensors> {};
template <>
struct type_caster<fastlrp::edge::RowTensors> : struct_caster<fastlrp::edge::RowTensors> {};
template <>
struct type_caster<fastlrp::edge::SummandTensors> : struct_caster<fastlrp::edge::SummandTensors> {};
template <>
struct type_caster<fastlrp::edge::GatherTensors> : struct_caster<fastlrp::edge::GatherTensors> {};
template <>
struct type_caster<fastlrp::edge::MaskTensors> : struct_caster<fastlrp::edge::MaskTensors> {};
template <>
struct type_caster<fastlrp::edge::CoefficientTensors> : struct_caster<fastlrp::edge::CoefficientTensors> {};
template <>
struct type_caster<fastlrp::edge::AttentionTensors> : struct_caster<fastlrp::edge::AttentionTensors> {};
template <>
struct type_caster<fastlrp::edge::RecurrenceTensors> : struct_caster<fastlrp::edge::RecurrenceTensors> {};
#if defined(FASTLRP_WITH_CUDA) || defined(FASTLRP_EMULATE)
template <>
struct type_caster<fastlrp::edge::cuda::PooledTensors> : struct_caster<fastlrp::edge::cuda::PooledTensors> {};
#endif

}  // namespace pybind11::detail

namespace fastlrp::bindings {

namespace py = pybind11;

// While a function runs other Python threads may; kernels run on as many threads as PyTorch would take.
class Running {
 public:
  Running() : Running(settled()) {}

 private:
  explicit Running(bool) {}
  // PyTorch tells OpenMP how many threads to take when a thread first asks it.
  static bool settled() {
    thread_local const bool asked = (py::module_::import("torch").attr("get_num_threads")(), true);
    return asked;
  }

  py::gil_scoped_release release_;
};

using release_gil = py::call_guard<Running>;

}  // namespace fastlrp::bindings
