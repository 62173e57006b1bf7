#include "marks.h"

#include <utility>

#include "interpreter.h"

namespace fastlrp::edge {
namespace {

int64_t version_of(void* object) {
  const py::object found = checked(PyObject_GetAttr(static_cast<PyObject*>(object), names().version));
  return PyLong_AsLongLong(found.ptr());
}

}  // namespace

std::optional<Seen> Seen::of(const Tensor& tensor) {
  const py::gil_scoped_acquire gil;
  auto* object = static_cast<PyObject*>(tensor.object());
  if (checked(PyObject_CallMethodNoArgs(object, names().is_inference)).ptr() == Py_True) {
    return std::nullopt;
  }
  Seen seen;
  const py::object storage = checked(PyObject_CallMethodNoArgs(object, names().untyped_storage));
  py::object reference = checked(PyObject_CallOneArg(names().weak_storage.ptr(), storage.ptr()));
  seen.storage_ = py::cast<uint64_t>(checked(PyObject_GetAttr(reference.ptr(), names().cdata)));
  seen.reference_ = std::shared_ptr<void>(reference.release().ptr(), [](void* held) {
    const py::gil_scoped_acquire again;
    Py_XDECREF(static_cast<PyObject*>(held));
  });
  seen.data_ = tensor.const_data_ptr();
  seen.count_ = tensor.numel();
  seen.version_ = py::cast<int64_t>(checked(PyObject_GetAttr(object, names().version)));
  return seen;
}

bool Seen::expired() const {
  const py::gil_scoped_acquire gil;
  return checked(PyObject_CallMethodNoArgs(static_cast<PyObject*>(reference_.get()), names().expired)).ptr() == Py_True;
}

bool Seen::is(const Seen& now) const {
  return data_ == now.data_ && count_ == now.count_ && version_ == now.version_ && !expired();
}

Marks::Marks(std::vector<Tensor> placed, std::vector<Tensor> counted)
    : placed_(std::move(placed)), counted_(std::move(counted)) {
  for (const Tensor& tensor : placed_) {
    REQUIRE_VALUE(tensor.is_dense(), "Marks: a tensor has no memory that can be addressed");
  }
  for (const Tensor& tensor : counted_) {
    versions_.push_back(version_of(tensor.object()));
  }
}

bool Marks::hold() const {
  for (const Tensor& tensor : placed_) {
    dlpack::View view{};
    if (names().exchange->view_of(tensor.object(), &view) != 0) {
      PyErr_Clear();
      return false;
    }
    const size_t axes = static_cast<size_t>(view.axes);  // Another view of the same memory holds other numbers.
    const bool same = data_of(view) == tensor.const_data_ptr() && Ints(view.shape, axes) == tensor.sizes() &&
                      Ints(view.strides, axes) == tensor.strides();
    if (!same) {
      return false;
    }
  }
  for (size_t i = 0; i < counted_.size(); ++i) {
    if (version_of(counted_[i].object()) != versions_[i]) {
      return false;
    }
  }
  return true;
}

std::optional<Memory> Memory::of(void* tensor) {
  dlpack::View view{};
  if (names().exchange->view_of(tensor, &view) != 0) {
    PyErr_Clear();
    return std::nullopt;
  }
  const size_t axes = static_cast<size_t>(view.axes);
  int64_t numel = 1;
  for (size_t axis = 0; axis < axes; ++axis) {
    numel *= view.shape[axis];
  }
  const bool whole = lies_contiguously({view.shape, axes}, {view.strides, axes}, numel);
  return Memory{data_of(view), numel, scalar_type_of(view.dtype), view.device.type == dlpack::kCpu, whole};
}

}  // namespace fastlrp::edge
