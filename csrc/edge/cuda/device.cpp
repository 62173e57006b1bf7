#include "device.h"

#include <atomic>

#include "looked_at.h"

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

const Kernels kCuda{"CUDA", "; use backend='auto' for other ", is_ours, true, true, &looked_at()};

int64_t read_on_host(const at::Tensor& one) {
  ++reads;
  return one.item<int64_t>();
}

void count_read() { ++reads; }

int64_t reads_on_host() { return reads; }

}  // namespace fastlrp::edge::cuda
