#pragma once

// Marks what the CPU and the GPU both compute, from one source.
#ifdef __CUDACC__
#define FASTLRP_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define FASTLRP_HOST_DEVICE inline
#endif
