// A PyTorch tensor as checks and kernels see it, without a header or a symbol of libtorch: what it says of itself comes
// through DLPack's C exchange, what has to be allocated or computed through its methods in Python. One build therefore
// runs with every version of PyTorch that has the exchange, 2.10 and newer.
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <iosfwd>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "require.h"

namespace fastlrp::edge {

using Sizes = std::vector<int64_t>;

// Sizes or strides that lie elsewhere.
class Ints {
 public:
  Ints() = default;
  Ints(const int64_t* data, size_t count) : data_(data), count_(count) {}
  Ints(const Sizes& sizes) : Ints(sizes.data(), sizes.size()) {}                     // NOLINT: implicit
  Ints(std::initializer_list<int64_t> sizes) : Ints(sizes.begin(), sizes.size()) {}  // lives as long as the call
  const int64_t* begin() const { return data_; }
  const int64_t* end() const { return data_ + count_; }
  size_t size() const { return count_; }
  bool empty() const { return count_ == 0; }
  int64_t operator[](size_t i) const { return data_[i]; }
  Ints slice(size_t first) const { return {data_ + first, count_ - first}; }
  Sizes vec() const { return {begin(), end()}; }

 private:
  const int64_t* data_ = nullptr;
  size_t count_ = 0;
};

bool operator==(Ints first, Ints second);
std::ostream& operator<<(std::ostream& out, Ints sizes);  // as [2, 3]

enum class ScalarType { Bool, Byte, Char, Short, Int, Long, Half, BFloat16, Float, Double, Other };

constexpr ScalarType kBool = ScalarType::Bool, kInt = ScalarType::Int, kLong = ScalarType::Long,
                     kHalf = ScalarType::Half, kBFloat16 = ScalarType::BFloat16, kFloat = ScalarType::Float,
                     kDouble = ScalarType::Double;

std::ostream& operator<<(std::ostream& out, ScalarType dtype);
int64_t itemsize(ScalarType dtype);

class Tensor {
 public:
  // An argument of one of its methods in Python.
  using Argument = std::variant<int64_t, bool, Sizes, Tensor, ScalarType>;

  Tensor() = default;

  // Of a Python tensor, a new reference to which it takes. Needs the GIL, which all that follows takes by itself.
  static Tensor of(void* object);

  bool defined() const { return body_ != nullptr; }
  void* object() const;  // the tensor in Python, borrowed

  int64_t dim() const { return static_cast<int64_t>(sizes().size()); }
  Ints sizes() const;
  Ints strides() const;
  int64_t size(int64_t axis) const { return sizes()[axis < 0 ? axis + dim() : axis]; }
  int64_t stride(int64_t axis) const { return strides()[axis < 0 ? axis + dim() : axis]; }
  int64_t numel() const;
  ScalarType scalar_type() const;
  int64_t itemsize() const;
  int64_t nbytes() const { return numel() * itemsize(); }

  bool is_dense() const;  // strided, with memory that can be addressed
  bool is_cpu() const;
  bool is_cuda() const;
  int32_t device_index() const;
  bool is_beside(const Tensor& other) const;  // on the same device
  std::string device() const;                 // as messages name it
  std::string layout() const;
  // Bytes of its storage, and of that behind its first element; 0 for what has no elements.
  int64_t storage_bytes() const;
  int64_t bytes_from_first() const { return storage_bytes() - byte_offset(); }

  const void* const_data_ptr() const;
  void* mutable_data_ptr() const { return const_cast<void*>(const_data_ptr()); }
  template <class T>
  const T* const_data_ptr() const {
    return static_cast<const T*>(const_data_ptr());
  }
  template <class T>
  T* mutable_data_ptr() const {
    return static_cast<T*>(mutable_data_ptr());
  }

  bool is_contiguous() const;
  bool is_non_overlapping_and_dense() const;
  bool is_same(const Tensor& other) const { return object() == other.object(); }

  // What a method of the tensor gives in Python.
  Tensor call(const char* method, std::initializer_list<Argument> arguments = {}) const;

  Tensor contiguous() const { return is_contiguous() ? *this : call("contiguous"); }
  Tensor resolve_neg() const;
  Tensor cpu() const { return call("cpu"); }
  Tensor to(ScalarType dtype) const { return dtype == scalar_type() ? *this : call("to", {dtype}); }
  Tensor movedim(int64_t from, int64_t to) const { return call("movedim", {from, to}); }
  Tensor transpose(int64_t first, int64_t second) const { return call("transpose", {first, second}); }
  Tensor permute(Sizes axes) const { return call("permute", {std::move(axes)}); }
  Tensor reshape(Sizes sizes) const { return call("reshape", {std::move(sizes)}); }
  Tensor expand(Sizes sizes) const { return call("expand", {std::move(sizes)}); }
  Tensor narrow(int64_t axis, int64_t start, int64_t length) const { return call("narrow", {axis, start, length}); }
  Tensor unsqueeze(int64_t axis) const { return call("unsqueeze", {axis}); }
  const Tensor& zero_() const { return call("zero_"), *this; }
  const Tensor& copy_(const Tensor& source) const { return call("copy_", {source}), *this; }
  int64_t item() const;  // of one integer; waits for its device

 private:
  struct Body;
  int64_t byte_offset() const;
  std::shared_ptr<const Body> body_;
};

using OptionalTensor = std::optional<Tensor>;

// New tensors on the device of `like`, by default of its dtype.
Tensor empty(Ints sizes, const Tensor& like, std::optional<ScalarType> dtype = std::nullopt);
Tensor zeros(Ints sizes, const Tensor& like, std::optional<ScalarType> dtype = std::nullopt);
Tensor empty_strided(Ints sizes, Ints strides, const Tensor& like, std::optional<ScalarType> dtype = std::nullopt);
inline Tensor empty_like(const Tensor& like) { return empty(like.sizes(), like); }

// Contiguous CPU memory that `release` gives back when no tensor refers to it any more.
Tensor from_memory(void* data, Ints sizes, ScalarType dtype, std::function<void()> release);

// c (N, Co, *S') through a convolution's weight (Co, Ci / groups, *k) to its input (N, Ci, *S), by PyTorch.
Tensor input_gradient(const Tensor& relevance, const Sizes& input_size, const Tensor& weight, const Sizes& stride,
                      const Sizes& padding, const Sizes& dilation, int64_t groups);

// What `torch.<name>` says, a string.
std::string setting(const char* name);

// The current stream of PyTorch on the tensor's GPU.
void* current_stream(const Tensor& tensor);

// While it lives, what is made counts its versions also in inference mode.
class OutOfInferenceMode {
 public:
  OutOfInferenceMode();
  ~OutOfInferenceMode();
  OutOfInferenceMode(const OutOfInferenceMode&) = delete;
  OutOfInferenceMode& operator=(const OutOfInferenceMode&) = delete;

 private:
  void* mode_;
};

// Looks whether a tensor is still what it was: the same storage, unchanged by PyTorch's count of versions.
class Seen {
 public:
  // Of a tensor without such a count (made in inference mode) nothing is known.
  static std::optional<Seen> of(const Tensor& tensor);

  uint64_t key() const { return storage_; }
  bool expired() const;
  // `now` is of the same key.
  bool is(const Seen& now) const;

 private:
  std::shared_ptr<void> reference_;  // a weak one; it keeps the storage's address from being used again
  uint64_t storage_ = 0;
  const void* data_ = nullptr;
  int64_t count_ = 0, version_ = 0;
};

// Where and how some tensors lie, and how often PyTorch counted a write to some. Needs the GIL.
class Marks {
 public:
  // Throws std::invalid_argument for a tensor without memory among `placed`.
  Marks(std::vector<Tensor> placed, std::vector<Tensor> counted);

  // Whether all is as it was when this was made.
  bool hold() const;

 private:
  std::vector<Tensor> placed_, counted_;
  std::vector<int64_t> versions_;
};

// A tensor's memory alone, which takes a part of the time that the rest does.
struct Memory {
  const void* data;
  int64_t numel;
  ScalarType dtype;
  bool on_cpu, contiguous;
};

// Nothing for a tensor without memory. Needs the GIL.
std::optional<Memory> memory_of(void* tensor);

}  // namespace fastlrp::edge
