#include "device.h"

#include <atomic>

namespace fastlrp::edge::cuda {
namespace {

std::atomic<int64_t> reads{0};

bool is_ours(const at::Tensor& tensor) {
#ifdef FASTLRP_EMULATE
  return tensor.device().is_cpu();
#else
  return tensor.device().is_cuda();
#endif
}

}  // namespace

void check_device(const char* op, const char* name, const at::Tensor& tensor) {
  TORCH_CHECK(is_ours(tensor) && tensor.layout() == at::kStrided, op, ": ", name, " must be a dense CUDA tensor, got ",
              tensor.layout(), " on ", tensor.device(), "; use backend='auto' for other tensors");
}

void check_same_device(const char* op, const char* name, const at::Tensor& tensor, const at::Tensor& first) {
  TORCH_CHECK(tensor.device() == first.device(), op, ": ", name, " must be on ", first.device(),
              " as the relevance is, got ", tensor.device());
  check_device(op, name, tensor);
}

void check_floating(const char* op, const char* name, const at::Tensor& tensor) {
  const at::ScalarType dtype = tensor.scalar_type();
  TORCH_CHECK_TYPE(dtype == at::kFloat || dtype == at::kDouble || dtype == at::kHalf || dtype == at::kBFloat16, op,
                   ": ", name, " must be float16, bfloat16, float32 or float64, got ", dtype);
}

int64_t read_on_host(const at::Tensor& one) {
  ++reads;
  return one.item<int64_t>();
}

int64_t reads_on_host() { return reads; }

}  // namespace fastlrp::edge::cuda
