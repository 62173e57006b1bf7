#include "tensors.h"

#include <limits>

namespace fastlrp::edge {
namespace {

bool is_on_cpu(const Tensor& tensor) { return tensor.is_cpu(); }

// Bytes from a tensor's first element to behind its last one, or the largest number.
int64_t span_of(const Tensor& tensor) {
  int64_t last = 0;
  for (int64_t axis = 0; axis < tensor.dim(); ++axis) {
    int64_t reach = 0;
    if (__builtin_mul_overflow(tensor.size(axis) - 1, tensor.stride(axis), &reach) ||
        __builtin_add_overflow(last, reach, &last)) {
      return std::numeric_limits<int64_t>::max();
    }
  }
  int64_t bytes = 0;
  return __builtin_mul_overflow(last + 1, tensor.itemsize(), &bytes) ? std::numeric_limits<int64_t>::max() : bytes;
}

bool has_its_memory(const Tensor& tensor) {
  return tensor.numel() == 0 || (tensor.const_data_ptr() != nullptr && span_of(tensor) <= tensor.bytes_from_first());
}

}  // namespace

const Kernels kCpu{"CPU", "; use backend='torch' for other ", is_on_cpu, false, false, nullptr};
const Kernels kCpuNarrow{"CPU", "; use backend='torch' for other ", is_on_cpu, true, false, nullptr};

void Check::tensor(const char* name, const Tensor& tensor) const {
  REQUIRE(tensor.defined(), op, ": ", name, " must be a tensor, got one that is not defined");
  REQUIRE(kernels.takes(tensor) && tensor.is_dense(), op, ": ", name, " must be a dense ", kernels.device,
          " tensor, got ", tensor.layout(), " on ", tensor.device(), kernels.instead, "tensors");
  REQUIRE_VALUE(has_its_memory(tensor), op, ": ", name, " must have memory for all of its elements, got ",
                tensor.sizes(), " in a storage of ", tensor.storage_bytes(), " bytes");
}

void Check::values(const char* name, const Tensor& tensor) const {
  this->tensor(name, tensor);
  const ScalarType dtype = tensor.scalar_type();
  const bool half = kernels.half && (dtype == kHalf || dtype == kBFloat16);
  REQUIRE_TYPE(half || dtype == kFloat || dtype == kDouble, op, ": ", name, " must be ",
               kernels.half ? "float16, bfloat16, float32 or float64" : "float32 or float64", ", got ", dtype,
               kernels.instead, "dtypes");
}

void Check::dtype(const char* name, const Tensor& tensor, ScalarType dtype) const {
  REQUIRE_TYPE(tensor.scalar_type() == dtype, op, ": ", name, " must be ", dtype, ", got ", tensor.scalar_type());
}

void Check::sizes(const char* name, const Tensor& tensor, Ints expected) const {
  REQUIRE_VALUE(tensor.sizes() == expected, op, ": ", name, " must have shape ", expected, ", got ", tensor.sizes());
}

void Check::beside(const char* name, const Tensor& tensor, const Tensor& first) const {
  this->tensor(name, tensor);
  REQUIRE(tensor.is_beside(first), op, ": ", name, " must be on ", first.device(), " as the others are, got ",
          tensor.device());
}

void Check::like(const char* name, const Tensor& tensor, const Tensor& first) const {
  beside(name, tensor, first);
  dtype(name, tensor, first.scalar_type());
}

void Check::not_negative(const char* name, int64_t number) const {
  REQUIRE_VALUE(number >= 0, op, ": ", name, " must not be negative, got ", number);
}

void Check::axes(const char* name, Ints values, size_t axes, const char* of, int64_t least) const {
  REQUIRE_VALUE(values.size() == axes, op, ": ", name, " must have one entry per spatial axis of ", of, " (", axes,
                "), got ", values);
  for (const int64_t value : values) {
    REQUIRE_VALUE(value >= least, op, ": ", name, least == 0 ? " must not be negative" : " must be positive", ", got ",
                  values);
    REQUIRE_VALUE(value < kBelow, op, ": ", name, " must be below 2^31, got ", values,
                  "; use backend='torch' for larger ones");
  }
}

void Check::elements(const char* name, int64_t channels, Ints size) const {
  REQUIRE_VALUE(!kernels.narrow || product({channels, product(size)}) < kBelow, op, ": ", name,
                " must leave fewer than 2^31 elements for one sample and target, got ", size, " for each of ", channels,
                " channels; use backend='torch' for larger ones");
}

int64_t product(Ints sizes) {
  int64_t result = 1;
  bool overflows = false;
  for (const int64_t size : sizes) {
    if (size == 0) {
      return 0;
    }
    overflows = overflows || __builtin_mul_overflow(result, size, &result);
  }
  return overflows ? std::numeric_limits<int64_t>::max() : result;
}

Sizes with(Sizes before, Ints size) {
  before.insert(before.end(), size.begin(), size.end());
  return before;
}

bool channels_last_dense(const Tensor& tensor, int64_t channel_axis) {
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

bool contiguous_from(const Tensor& tensor, int64_t first_axis) {
  int64_t expected = 1;
  for (int64_t axis = tensor.dim() - 1; axis >= first_axis; --axis) {
    if (tensor.size(axis) > 1 && tensor.stride(axis) != expected) {
      return false;
    }
    expected *= tensor.size(axis);
  }
  return true;
}

Tensor to_channels_last(const Tensor& tensor) { return tensor.movedim(1, -1).contiguous().movedim(-1, 1); }

}  // namespace fastlrp::edge
