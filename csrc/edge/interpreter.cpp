#include "interpreter.h"

namespace fastlrp::edge {
namespace {

const dlpack::Exchange* find_exchange() {
  const py::object type = py::module_::import("torch").attr("Tensor");
  if (!py::hasattr(type, "__dlpack_c_exchange_api__")) {
    throw std::runtime_error("fastlrp needs PyTorch 2.11 or newer: torch.Tensor has no __dlpack_c_exchange_api__");
  }
  const auto capsule = py::object(type.attr("__dlpack_c_exchange_api__"));
  auto* found = static_cast<dlpack::Exchange*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  if (found == nullptr) {
    throw py::error_already_set();
  }
  while (found != nullptr && found->version.major != dlpack::kMajor) {
    found = found->previous;
  }
  if (found == nullptr) {
    throw std::runtime_error("fastlrp knows version 1 of DLPack's C exchange, which this PyTorch does not have");
  }
  return found;
}

}  // namespace

Names::Names()
    : torch(py::module_::import("torch")),
      dtype(py::make_tuple(py::str("dtype"))),
      weak_storage(py::module_::import("torch.multiprocessing.reductions").attr("StorageWeakRef")),
      untyped_storage(PyUnicode_InternFromString("untyped_storage")),
      nbytes(PyUnicode_InternFromString("nbytes")),
      storage_offset(PyUnicode_InternFromString("storage_offset")),
      is_neg(PyUnicode_InternFromString("is_neg")),
      new_empty(PyUnicode_InternFromString("new_empty")),
      new_empty_strided(PyUnicode_InternFromString("new_empty_strided")),
      is_inference(PyUnicode_InternFromString("is_inference")),
      version(PyUnicode_InternFromString("_version")),
      cdata(PyUnicode_InternFromString("cdata")),
      expired(PyUnicode_InternFromString("expired")),
      exchange(find_exchange()) {
  const char* names[] = {"bool",  "uint8",   "int8",     "int16",   "int32",
                         "int64", "float16", "bfloat16", "float32", "float64"};
  for (int i = 0; i < static_cast<int>(ScalarType::Other); ++i) {
    dtypes[i] = torch.attr(names[i]);
  }
}

const Names& names() {
  static const Names* found = new Names;
  return *found;
}

py::object checked(PyObject* made) {
  if (made == nullptr) {
    throw py::error_already_set();
  }
  return py::reinterpret_steal<py::object>(made);
}

ScalarType scalar_type_of(dlpack::DataType dtype) {
  const auto is = [&](uint8_t code, uint8_t bits) {
    return dtype.code == code && dtype.bits == bits && dtype.lanes == 1;
  };
  if (is(dlpack::kFloat, 32)) return ScalarType::Float;
  if (is(dlpack::kFloat, 64)) return ScalarType::Double;
  if (is(dlpack::kInt, 64)) return ScalarType::Long;
  if (is(dlpack::kInt, 32)) return ScalarType::Int;
  if (is(dlpack::kBool, 8)) return ScalarType::Bool;
  if (is(dlpack::kFloat, 16)) return ScalarType::Half;
  if (is(dlpack::kBfloat, 16)) return ScalarType::BFloat16;
  if (is(dlpack::kUInt, 8)) return ScalarType::Byte;
  if (is(dlpack::kInt, 8)) return ScalarType::Char;
  if (is(dlpack::kInt, 16)) return ScalarType::Short;
  return ScalarType::Other;
}

const void* data_of(const dlpack::View& view) {
  return view.data == nullptr ? nullptr : static_cast<const char*>(view.data) + view.byte_offset;
}

}  // namespace fastlrp::edge
