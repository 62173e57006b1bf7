// What every CUDA edge function needs: its kernels' checks, the current device and stream, dtypes.
#pragma once

#include <utility>

#include "../../cuda/device.h"
#include "../tensors.h"

namespace fastlrp::edge::cuda {

using fastlrp::cuda::Stream;

extern const Kernels kCuda;

// The one int64 that a tensor holds. Waits for the device: only where a pattern is made, never while relevance moves.
int64_t read_on_host(const Tensor& one);
void count_read();        // another read of that kind
int64_t reads_on_host();  // how often that has been done, for tests

#ifndef FASTLRP_EMULATE
// Makes a device the current one for as long as it lives.
class OnDevice {
 public:
  explicit OnDevice(int device);
  ~OnDevice();
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = 0, device_;
};
#endif

// run(stream) with the tensor's device and its current stream.
template <class Run>
decltype(auto) on_device(const Tensor& tensor, Run&& run) {
#ifdef FASTLRP_EMULATE
  (void)tensor;
  return std::forward<Run>(run)(Stream{});
#else
  const OnDevice guard(tensor.device_index());
  return std::forward<Run>(run)(Stream{static_cast<cudaStream_t>(current_stream(tensor))});
#endif
}

// run(T{}) with the kernels' type of a dtype that Check::values lets through.
template <class Run>
decltype(auto) with_type(ScalarType dtype, Run&& run) {
  switch (dtype) {
    case kDouble:
      return std::forward<Run>(run)(double{});
    case kHalf:
      return std::forward<Run>(run)(__half{});
    case kBFloat16:
      return std::forward<Run>(run)(__nv_bfloat16{});
    default:
      return std::forward<Run>(run)(float{});
  }
}

template <class T>
T* data_of(const Tensor& tensor) {
  return static_cast<T*>(const_cast<void*>(tensor.const_data_ptr()));
}

template <class T>
T* data_of(const OptionalTensor& tensor) {
  return tensor.has_value() ? data_of<T>(*tensor) : nullptr;
}

}  // namespace fastlrp::edge::cuda
