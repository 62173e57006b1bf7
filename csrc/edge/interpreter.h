// Python's side of tensors, for the files that call its interpreter. All of it needs the GIL.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "dlpack.h"
#include "tensor.h"

namespace fastlrp::edge {

namespace py = pybind11;

// Objects of Python that are looked up once. They are never given back: the interpreter may end before.
struct Names {
  py::object torch, dtype, dtypes[static_cast<int>(ScalarType::Other)];
  py::object weak_storage;
  PyObject *untyped_storage, *nbytes, *storage_offset, *is_neg, *new_empty, *new_empty_strided;
  PyObject *is_inference, *version, *cdata, *expired;
  const dlpack::Exchange* exchange;

  Names();
};

const Names& names();

// A new reference as an object; throws the error that Python raised in its place.
py::object checked(PyObject* made);

ScalarType scalar_type_of(dlpack::DataType dtype);

// The first entry; null where there is no memory.
const void* data_of(const dlpack::View& view);

}  // namespace fastlrp::edge
