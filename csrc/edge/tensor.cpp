#include "tensor.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstddef>
#include <limits>
#include <numeric>
#include <ostream>

#include "dlpack.h"

namespace fastlrp::edge {
namespace {

namespace py = pybind11;

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

// Objects of Python that are looked up once. They are never given back: the interpreter may end before.
struct Names {
  py::object torch, dtype, dtypes[static_cast<int>(ScalarType::Other)];
  py::object weak_storage;
  PyObject *untyped_storage, *nbytes, *storage_offset, *is_neg, *new_empty, *new_empty_strided;
  PyObject *is_inference, *version, *cdata, *expired;
  const dlpack::Exchange* exchange;

  Names()
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
};

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

int64_t number(PyObject* object, PyObject* method) {
  const py::object found = checked(PyObject_CallMethodNoArgs(object, method));
  return PyLong_AsLongLong(found.ptr());
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

py::object object_of(const Tensor& tensor) {
  return py::reinterpret_borrow<py::object>(static_cast<PyObject*>(tensor.object()));
}

py::tuple tuple_of(Ints sizes) {
  py::tuple made(sizes.size());
  for (size_t i = 0; i < sizes.size(); ++i) {
    PyTuple_SET_ITEM(made.ptr(), static_cast<Py_ssize_t>(i), PyLong_FromLongLong(sizes[i]));
  }
  return made;
}

py::object object_of(const Tensor::Argument& argument) {
  return std::visit(
      [](const auto& value) -> py::object {
        using T = std::decay_t<decltype(value)>;
        if constexpr (std::is_same_v<T, Tensor>) {
          return object_of(value);
        } else if constexpr (std::is_same_v<T, Sizes>) {
          return tuple_of(value);
        } else if constexpr (std::is_same_v<T, ScalarType>) {
          return names().dtypes[static_cast<int>(value)];
        } else {
          return py::cast(value);
        }
      },
      argument);
}

// What a method of `like` makes of sizes and strides.
Tensor made(PyObject* method, std::initializer_list<py::tuple> given, const Tensor& like,
            std::optional<ScalarType> dtype) {
  PyObject* arguments[4] = {static_cast<PyObject*>(like.object())};
  size_t count = 1;
  for (const py::tuple& argument : given) {
    arguments[count++] = argument.ptr();
  }
  const bool other = dtype.has_value() && *dtype != like.scalar_type();
  if (other) {
    arguments[count] = names().dtypes[static_cast<int>(*dtype)].ptr();
  }
  return Tensor::of(
      checked(PyObject_VectorcallMethod(method, arguments, count, other ? names().dtype.ptr() : nullptr)).ptr());
}

// The end of a DLPack tensor whose memory is ours.
struct Lent {
  dlpack::Managed managed;
  Sizes sizes, strides;
  std::function<void()> release;

  static void end(dlpack::Managed* self) {
    auto* lent = static_cast<Lent*>(self->owner);
    lent->release();
    delete lent;
  }
};

bool lies_contiguously(Ints sizes, Ints strides, int64_t numel) {
  int64_t expected = 1;
  for (size_t axis = sizes.size(); axis-- > 0;) {
    if (sizes[axis] != 1 && strides[axis] != expected) {
      return numel == 0;
    }
    expected *= sizes[axis];
  }
  return true;
}

const void* data_of(const dlpack::View& view) {
  return view.data == nullptr ? nullptr : static_cast<const char*>(view.data) + view.byte_offset;
}

int64_t version_of(void* object) {
  const py::object found = checked(PyObject_GetAttr(static_cast<PyObject*>(object), names().version));
  return PyLong_AsLongLong(found.ptr());
}

dlpack::DataType datatype(ScalarType dtype) {
  const uint8_t code = dtype == kFloat || dtype == kDouble ? dlpack::kFloat : dlpack::kInt;
  return {code, static_cast<uint8_t>(8 * itemsize(dtype)), 1};
}

}  // namespace

bool operator==(Ints first, Ints second) {
  return std::equal(first.begin(), first.end(), second.begin(), second.end());
}

std::ostream& operator<<(std::ostream& out, Ints sizes) {
  out << "[";
  for (size_t i = 0; i < sizes.size(); ++i) {
    out << (i > 0 ? ", " : "") << sizes[i];
  }
  return out << "]";
}

std::ostream& operator<<(std::ostream& out, ScalarType dtype) {
  const char* names[] = {"Bool", "Byte",     "Char",  "Short",  "Int",          "Long",
                         "Half", "BFloat16", "Float", "Double", "another dtype"};
  return out << names[static_cast<int>(dtype)];
}

int64_t itemsize(ScalarType dtype) {
  constexpr int64_t sizes[] = {1, 1, 1, 2, 4, 8, 2, 2, 4, 8, 1};
  return sizes[static_cast<int>(dtype)];
}

struct Tensor::Body {
  PyObject* object = nullptr;
  void* data = nullptr;
  Sizes sizes, strides;
  ScalarType dtype = ScalarType::Other;
  int64_t storage_bytes = 0, byte_offset = 0;
  int32_t device_type = 0, device_index = 0;
  bool dense = false, negated = false;
  int64_t numel = 0;
  std::string device, layout;  // of what is not dense

  Body() = default;
  Body(const Body&) = delete;
  Body& operator=(const Body&) = delete;
  ~Body() {
    if (PyGILState_Check()) {
      Py_XDECREF(object);
    } else {
      const py::gil_scoped_acquire gil;
      Py_XDECREF(object);
    }
  }
};

Tensor Tensor::of(void* object_) {
  const auto body = std::make_shared<Body>();
  auto* object = static_cast<PyObject*>(object_);
  Py_INCREF(object);
  body->object = object;
  dlpack::View view{};
  if (names().exchange->view_of(object, &view) != 0) {  // A sparse one, or one without memory.
    PyErr_Clear();
    const auto tensor = py::reinterpret_borrow<py::object>(object);
    body->device = py::str(tensor.attr("device"));
    const std::string layout = py::str(tensor.attr("layout"));  // torch.sparse_coo
    body->layout = layout == "torch.strided" ? "Strided" : layout.rfind("torch.sparse", 0) == 0 ? "Sparse" : layout;
    body->sizes = py::cast<Sizes>(tensor.attr("shape"));
    body->strides = Sizes(body->sizes.size());
    Tensor made;
    made.body_ = body;
    return made;
  }
  body->dense = true;
  body->sizes.assign(view.shape, view.shape + view.axes);
  body->strides.assign(view.strides, view.strides + view.axes);
  body->numel = std::accumulate(body->sizes.begin(), body->sizes.end(), int64_t{1}, std::multiplies<>());
  body->data = const_cast<void*>(data_of(view));
  body->dtype = scalar_type_of(view.dtype);
  body->device_type = view.device.type, body->device_index = view.device.index;
  const py::object negated = checked(PyObject_CallMethodNoArgs(object, names().is_neg));
  body->negated = negated.ptr() == Py_True;
  if (body->numel > 0) {
    const py::object storage = checked(PyObject_CallMethodNoArgs(object, names().untyped_storage));
    body->storage_bytes = number(storage.ptr(), names().nbytes);
    body->byte_offset = number(object, names().storage_offset) * edge::itemsize(body->dtype);
  }
  Tensor made;
  made.body_ = body;
  return made;
}

void* Tensor::object() const { return body_ == nullptr ? nullptr : body_->object; }
Ints Tensor::sizes() const { return body_->sizes; }
Ints Tensor::strides() const { return body_->strides; }
int64_t Tensor::numel() const { return body_->numel; }
ScalarType Tensor::scalar_type() const { return body_->dtype; }
int64_t Tensor::itemsize() const { return edge::itemsize(body_->dtype); }
bool Tensor::is_dense() const { return body_->dense; }
bool Tensor::is_cpu() const { return body_->device_type == dlpack::kCpu; }
bool Tensor::is_cuda() const { return body_->device_type == dlpack::kCuda; }
int32_t Tensor::device_index() const { return body_->device_index; }
const void* Tensor::const_data_ptr() const { return body_->data; }

bool Tensor::is_beside(const Tensor& other) const {
  return body_->device_type == other.body_->device_type && body_->device_index == other.body_->device_index;
}

std::string Tensor::device() const {
  if (body_->dense && is_cpu()) {
    return "cpu";
  }
  const py::gil_scoped_acquire gil;
  return py::str(object_of(*this).attr("device"));
}

std::string Tensor::layout() const { return body_->dense ? "Strided" : body_->layout; }

int64_t Tensor::storage_bytes() const { return body_->storage_bytes; }
int64_t Tensor::byte_offset() const { return body_->byte_offset; }

bool Tensor::is_contiguous() const { return lies_contiguously(sizes(), strides(), numel()); }

bool Tensor::is_non_overlapping_and_dense() const {
  std::vector<int64_t> axes;
  for (int64_t axis = 0; axis < dim(); ++axis) {
    if (size(axis) != 1) {
      axes.push_back(axis);
    }
  }
  std::sort(axes.begin(), axes.end(), [&](int64_t a, int64_t b) { return stride(a) < stride(b); });
  int64_t expected = 1;
  for (const int64_t axis : axes) {
    if (stride(axis) != expected) {
      return numel() == 0;
    }
    expected *= size(axis);
  }
  return true;
}

Tensor Tensor::call(const char* method, std::initializer_list<Argument> arguments) const {
  const py::gil_scoped_acquire gil;
  py::tuple given(arguments.size());
  size_t i = 0;
  for (const Argument& argument : arguments) {
    given[i++] = edge::object_of(argument);
  }
  return of(object_of(*this).attr(method)(*given).ptr());
}

Tensor Tensor::resolve_neg() const { return body_->negated ? call("resolve_neg") : *this; }

int64_t Tensor::item() const {
  const py::gil_scoped_acquire gil;
  return py::cast<int64_t>(object_of(*this).attr("item")());
}

Tensor empty(Ints sizes, const Tensor& like, std::optional<ScalarType> dtype) {
  const py::gil_scoped_acquire gil;
  return made(names().new_empty, {tuple_of(sizes)}, like, dtype);
}

Tensor zeros(Ints sizes, const Tensor& like, std::optional<ScalarType> dtype) {
  return empty(sizes, like, dtype).zero_();
}

Tensor empty_strided(Ints sizes, Ints strides, const Tensor& like, std::optional<ScalarType> dtype) {
  const py::gil_scoped_acquire gil;
  return made(names().new_empty_strided, {tuple_of(sizes), tuple_of(strides)}, like, dtype);
}

Tensor from_memory(void* data, Ints sizes, ScalarType dtype, std::function<void()> release) {
  auto* lent = new Lent{{{dlpack::kMajor, 0}, nullptr, &Lent::end, 0, {}}, sizes.vec(), {}, std::move(release)};
  lent->strides.assign(sizes.size(), 1);
  for (size_t axis = sizes.size(); axis-- > 1;) {
    lent->strides[axis - 1] = lent->strides[axis] * std::max<int64_t>(1, sizes[axis]);
  }
  lent->managed.owner = lent;
  lent->managed.view = {data,
                        {dlpack::kCpu, 0},
                        static_cast<int32_t>(sizes.size()),
                        datatype(dtype),
                        lent->sizes.data(),
                        lent->strides.data(),
                        0};
  const py::gil_scoped_acquire gil;
  void* object = nullptr;
  if (names().exchange->object_of(&lent->managed, &object) != 0) {
    throw py::error_already_set();
  }
  return Tensor::of(checked(static_cast<PyObject*>(object)).ptr());
}

Tensor input_gradient(const Tensor& relevance, const Sizes& input_size, const Tensor& weight, const Sizes& stride,
                      const Sizes& padding, const Sizes& dilation, int64_t groups) {
  const py::gil_scoped_acquire gil;
  const py::object arriving = object_of(relevance);
  // Of the input only the sizes count.
  const py::object input = arriving.attr("new_empty")(py::make_tuple(1)).attr("expand")(tuple_of(input_size));
  const py::object through = names().torch.attr("ops").attr("aten").attr("convolution_backward");
  const py::tuple found =
      through(arriving, input, object_of(weight).attr("detach")(), py::none(), tuple_of(stride), tuple_of(padding),
              tuple_of(dilation), false, tuple_of(Sizes(stride.size(), 0)), groups, py::make_tuple(true, false, false));
  return Tensor::of(py::object(found[0]).ptr());
}

std::string setting(const char* name) {
  const py::gil_scoped_acquire gil;
  py::object found = names().torch;
  const std::string path = name;
  for (size_t begin = 0; begin <= path.size();) {
    const size_t end = std::min(path.find('.', begin), path.size());
    found = found.attr(path.substr(begin, end - begin).c_str());
    begin = end + 1;
  }
  return py::str(found);
}

void* current_stream(const Tensor& tensor) {
  const py::gil_scoped_acquire gil;
  void* stream = nullptr;
  if (names().exchange->current_stream(dlpack::kCuda, tensor.device_index(), &stream) != 0) {
    throw py::error_already_set();
  }
  return stream;
}

OutOfInferenceMode::OutOfInferenceMode() {
  const py::gil_scoped_acquire gil;
  py::object mode = names().torch.attr("inference_mode")(false);
  mode.attr("__enter__")();
  mode_ = mode.release().ptr();
}

OutOfInferenceMode::~OutOfInferenceMode() {
  const py::gil_scoped_acquire gil;
  const auto mode = py::reinterpret_steal<py::object>(static_cast<PyObject*>(mode_));
  try {
    mode.attr("__exit__")(py::none(), py::none(), py::none());
  } catch (py::error_already_set& error) {
    error.discard_as_unraisable("fastlrp: leaving inference_mode(False)");
  }
}

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

std::optional<Memory> memory_of(void* tensor) {
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
