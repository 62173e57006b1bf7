#include "device.h"

#include <atomic>

#include "looked_at.h"

namespace fastlrp::edge::cuda {
namespace {

std::atomic<int64_t> reads{0};

bool is_ours(const Tensor& tensor) {
#ifdef FASTLRP_EMULATE
  return tensor.is_cpu();
#else
  return tensor.is_cuda();
#endif
}

}  // namespace

const Kernels kCuda{"CUDA", "; use backend='auto' for other ", is_ours, true, true, &looked_at()};

#ifndef FASTLRP_EMULATE
OnDevice::OnDevice(int device) : device_(device) {
  REQUIRE(cudaGetDevice(&before_) == cudaSuccess && (before_ == device || cudaSetDevice(device) == cudaSuccess),
          "CUDA device ", device, " cannot be used: ", cudaGetErrorString(cudaGetLastError()));
}

OnDevice::~OnDevice() {
  if (before_ != device_) {
    cudaSetDevice(before_);
  }
}
#endif

int64_t read_on_host(const Tensor& one) {
  ++reads;
  return one.item();
}

void count_read() { ++reads; }

int64_t reads_on_host() { return reads; }

}  // namespace fastlrp::edge::cuda
