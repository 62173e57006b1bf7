// What every CUDA edge function needs: its kernels' checks, the current device and stream, dtypes.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <utility>

#include "../../cuda/device.h"
#include "../tensors.h"

#ifndef FASTLRP_EMULATE
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace fastlrp::edge::cuda {

using fastlrp::cuda::Stream;

extern const Kernels kCuda;

// The one int64 that a tensor holds. Waits for the device: only where a pattern is made, never while relevance moves.
int64_t read_on_host(const at::Tensor& one);
void count_read();        // another read of that kind
int64_t reads_on_host();  // how often that has been done, for tests

// run(stream) with the tensor's device and its current stream.
template <class Run>
decltype(auto) on_device(const at::Tensor& tensor, Run&& run) {
#ifdef FASTLRP_EMULATE
  (void)tensor;
  return std::forward<Run>(run)(Stream{});
#else
  const c10::cuda::CUDAGuard guard(tensor.device());
  return std::forward<Run>(run)(Stream{c10::cuda::getCurrentCUDAStream(tensor.device().index()).stream()});
#endif
}

// run(T{}) with the kernels' type of a dtype that Check::values lets through.
template <class Run>
decltype(auto) with_type(at::ScalarType dtype, Run&& run) {
  switch (dtype) {
    case at::kDouble:
      return std::forward<Run>(run)(double{});
    case at::kHalf:
      return std::forward<Run>(run)(__half{});
    case at::kBFloat16:
      return std::forward<Run>(run)(__nv_bfloat16{});
    default:
      return std::forward<Run>(run)(float{});
  }
}

template <class T>
T* data_of(const at::Tensor& tensor) {
  return static_cast<T*>(const_cast<void*>(tensor.const_data_ptr()));
}

template <class T>
T* data_of(const OptionalTensor& tensor) {
  return tensor.has_value() ? data_of<T>(*tensor) : nullptr;
}

}  // namespace fastlrp::edge::cuda
