// What kernels need of the GPU. The only header, with tensor_core.h, that knows whether nvcc compiles them or the
// emulator of tests/native/cuda, which runs them on the CPU.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "../common/host_device.h"

#ifdef FASTLRP_EMULATE
#include "emulator.h"
#else
#include <cuda_runtime.h>
#endif

namespace fastlrp::cuda {

using Stream = cudaStream_t;

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
// More dynamic shared memory than this must be asked for, kernel by kernel.
constexpr size_t kPlainShared = 48 * 1024;
// A grid's y and z.
constexpr int64_t kGridYZ = 65535;

#if defined(__CUDACC__) || defined(FASTLRP_EMULATE)  // not for the edge functions, which g++ compiles

// The shared memory that launch() was told to give the block, aligned to 16 bytes.
template <class T>
__device__ __forceinline__ T* dynamic_shared() {
#ifdef FASTLRP_EMULATE
  return reinterpret_cast<T*>(emulator::dynamic_shared());
#else
  extern __shared__ __align__(16) unsigned char fastlrp_shared[];
  return reinterpret_cast<T*>(fastlrp_shared);
#endif
}

// N values of shared memory, others for each `id` (__LINE__) of a kernel; __shared__ stands nowhere else.
template <class T, int N, int id>
__device__ __forceinline__ T* shared_array() {
#ifdef FASTLRP_EMULATE
  static T* array = static_cast<T*>(emulator::new_shared(N * sizeof(T)));
#else
  __shared__ __align__(16) T array[N];
#endif
  return array;
}

// Runs kernel(args…) on the stream; nothing if the grid is empty. Throws std::runtime_error with the kernel's name if
// it cannot be launched. An error while it runs shows at a later call, as always with CUDA.
template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, Stream stream, A... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) {
    return;
  }
#ifdef FASTLRP_EMULATE
  (void)stream;
  emulator::note(reinterpret_cast<const void*>(kernel));
  emulator::run(grid, block, shared_bytes, [=] { kernel(static_cast<P>(args)...); });
#else
  cudaError_t error = cudaSuccess;
  if (shared_bytes > kPlainShared) {
    error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shared_bytes));
  }
  if (error == cudaSuccess) {
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    error = cudaLaunchKernelEx(&config, kernel, static_cast<P>(args)...);
  }
  if (error != cudaSuccess) {
    cudaGetLastError();  // else PyTorch would take it for that of its next kernel
    const char* name = "?";
    cudaFuncGetName(&name, reinterpret_cast<const void*>(kernel));
    throw std::runtime_error(std::string("cannot launch ") + name + " with grid (" + std::to_string(grid.x) + ", " +
                             std::to_string(grid.y) + ", " + std::to_string(grid.z) + "), block of " +
                             std::to_string(block.x * block.y * block.z) + " threads and " +
                             std::to_string(shared_bytes) + " bytes of shared memory: " + cudaGetErrorString(error));
  }
#endif
}

#endif

// Blocks that cover `count` items with `each` of them per block, at most `most`: kernels walk on in grid strides.
inline unsigned blocks_for(int64_t count, int64_t each, int64_t most = int64_t{1} << 30) {
  const int64_t blocks = (count + each - 1) / each;
  return static_cast<unsigned>(blocks < most ? blocks : most);
}

// What sums are kept in: double for double, float for the rest.
template <class T>
struct AccumulateOf {
  using type = float;
};
template <>
struct AccumulateOf<double> {
  using type = double;
};
template <class T>
using Accumulate = typename AccumulateOf<T>::type;

template <class T>
FASTLRP_HOST_DEVICE Accumulate<T> to_float(T x) {
  if constexpr (std::is_same_v<T, __half>) {
    return __half2float(x);
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __bfloat162float(x);
  } else {
    return x;
  }
}

// Rounds to the nearest, ties to even.
template <class T>
FASTLRP_HOST_DEVICE T from_float(Accumulate<T> x) {
  if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(x);
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __float2bfloat16_rn(x);
  } else {
    return x;
  }
}

// N values that move as one: 16 bytes where N is kVector<T>.
template <class T, int N>
struct alignas(sizeof(T) * N) Vector {
  T at[N];
};

template <class T>
constexpr int kVector = 16 / sizeof(T);

// Whether a pointer may be read N values at a time.
template <class T>
inline bool is_aligned(const T* pointer, int n = kVector<T>) {
  return reinterpret_cast<uintptr_t>(pointer) % (sizeof(T) * n) == 0;
}

#if defined(__CUDACC__) || defined(FASTLRP_EMULATE)

// A vector is moved by instructions of at most 16 bytes, which fail where the address is no multiple of their size.
template <class V>
__device__ __forceinline__ void check_aligned(const void* address) {
#ifdef FASTLRP_EMULATE
  emulator::check_aligned(address, sizeof(V) < 16 ? sizeof(V) : 16);
#else
  (void)address;
#endif
}

template <class T, int N>
__device__ __forceinline__ Vector<T, N> load_vector(const T* from) {
  check_aligned<Vector<T, N>>(from);
  return *reinterpret_cast<const Vector<T, N>*>(from);
}

template <class T, int N>
__device__ __forceinline__ void store_vector(T* to, const Vector<T, N>& value) {
  check_aligned<Vector<T, N>>(to);
  *reinterpret_cast<Vector<T, N>*>(to) = value;
}

template <class T>
__device__ __forceinline__ T warp_sum(T x) {
  for (int step = kWarp / 2; step > 0; step /= 2) {
    x += __shfl_xor_sync(kAllLanes, x, step);
  }
  return x;
}

#endif

}  // namespace fastlrp::cuda
