#include "tensors.h"

namespace fastlrp::edge {

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

at::Tensor to_channels_last(const at::Tensor& tensor) { return tensor.movedim(1, -1).contiguous().movedim(-1, 1); }

}  // namespace fastlrp::edge
