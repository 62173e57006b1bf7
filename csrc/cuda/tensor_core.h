// Tensor-core products of a warp and what feeds them, as the PTX ISA defines them (9.7.14 "Warp level matrix
// multiply-accumulate", 9.7.9.25 "cp.async"). Fragments, with lane = 4 * group + thread:
//   A of m16n8k8 (tf32)       a[0] (m = group, k = thread), a[1] (m + 8, k), a[2] (m, k + 4), a[3] (m + 8, k + 4)
//   B of m16n8k8              b[0] (k = thread, n = group), b[1] (k + 4, n)
//   A of m16n8k16 (16 bits)   a[0] (m = group, k = 2 thread and + 1), a[1] (m + 8), a[2] (k + 8), a[3] (m + 8, k + 8)
//   B of m16n8k16             b[0] (k = 2 thread and + 1, n = group), b[1] (k + 8)
//   C and D of both           c[0] (m = group, n = 2 thread), c[1] (n + 1), c[2] (m + 8, n), c[3] (m + 8, n + 1)
// Every lane of the warp must call them.
#pragma once

#include "device.h"

namespace fastlrp::cuda {

// Rounded to tf32: 10 bits of mantissa, to the nearest, ties away from zero.
__device__ __forceinline__ uint32_t to_tf32(float x) {
#ifdef FASTLRP_EMULATE
  return emulator::to_tf32(x);
#else
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(x));
  return rounded;
#endif
}

__device__ __forceinline__ void mma_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef FASTLRP_EMULATE
  emulator::mma_tf32(c, a, b);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// T: __half or __nv_bfloat16, two of them in each register, the smaller k in the lower half.
template <class T>
__device__ __forceinline__ void mma_16bit(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef FASTLRP_EMULATE
  emulator::mma_16bit<T>(c, a, b);
#else
  if constexpr (std::is_same_v<T, __half>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
#endif
}

// Four 8x8 matrices of 16-bit values from shared memory. Lane 8 i + j gives the address of row j of matrix i (16 bytes,
// aligned). r[i] of a lane holds row `group`, columns 2 thread and + 1 of matrix i; transposed: rows 2 thread and + 1
// of column `group`.
template <bool transposed>
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], const void* row) {
#ifdef FASTLRP_EMULATE
  emulator::load_matrices<transposed>(r, row);
#else
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (transposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
  }
#endif
}

// Begins to copy `bytes` (0 to 16, the rest up to 16 becomes zero) from global to shared memory, both aligned to 16
// bytes. What was copied may be read after commit_copies, wait_copies and a barrier.
__device__ __forceinline__ void copy_16_async(void* shared, const void* global, int bytes = 16) {
#ifdef FASTLRP_EMULATE
  emulator::copy_async(shared, global, 16, bytes);
#else
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global), "r"(bytes) : "memory");
#endif
}

// The same for 4 bytes (0 or 4 of them read), aligned to 4.
__device__ __forceinline__ void copy_4_async(void* shared, const void* global, int bytes = 4) {
#ifdef FASTLRP_EMULATE
  emulator::copy_async(shared, global, 4, bytes);
#else
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(address), "l"(global), "r"(bytes) : "memory");
#endif
}

// The copies that this thread began since the last commit are one group.
__device__ __forceinline__ void commit_copies() {
#ifdef FASTLRP_EMULATE
  emulator::commit_copies();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most `pending` of this thread's latest groups are unfinished.
template <int pending>
__device__ __forceinline__ void wait_copies() {
#ifdef FASTLRP_EMULATE
  emulator::wait_copies(pending);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
#endif
}

}  // namespace fastlrp::cuda
