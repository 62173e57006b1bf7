#include "sparse_kernel.h"

#include <utility>

#include "../common/isa.h"

#if FASTLRP_X86
#include <immintrin.h>
#endif

// Hides where a pointer comes from, so that each weight is one load from pointer + index: the compiler would otherwise
// add index and offset first, an instruction per weight in a loop that the front end already limits.
#if defined(__GNUC__) || defined(__clang__)
#define FASTLRP_OPAQUE(pointer) __asm__("" : "+r"(pointer))
#else
#define FASTLRP_OPAQUE(pointer)
#endif

// clang-format off: the order of these includes is that of the instruction sets.
#define FASTLRP_KERNEL portable
#define FASTLRP_KERNEL_TARGET
#define FASTLRP_KERNEL_BYTES 16
#include "sparse_kernel.inc"

#if FASTLRP_X86
#define FASTLRP_KERNEL avx2
#define FASTLRP_KERNEL_TARGET FASTLRP_TARGET_AVX2
#define FASTLRP_KERNEL_BYTES 32
#include "sparse_kernel.inc"

#define FASTLRP_KERNEL avx512
#define FASTLRP_KERNEL_TARGET FASTLRP_TARGET_AVX512
#define FASTLRP_KERNEL_BYTES 64
#include "sparse_kernel.inc"
#endif
// clang-format on

namespace fastlrp::cpu {

template <class T>
SparseKernel<T> sparse_kernel() {
#if FASTLRP_X86
  switch (isa()) {
    case Isa::avx512:
      return {avx512::multiply_add<T>, avx512::scale_rows<T>, avx512::alive_channels<T>};
    case Isa::avx2:
      return {avx2::multiply_add<T>, avx2::scale_rows<T>, avx2::alive_channels<T>};
    default:
      break;
  }
#endif
  return {portable::multiply_add<T>, portable::scale_rows<T>, portable::alive_channels<T>};
}

template SparseKernel<float> sparse_kernel<float>();
template SparseKernel<double> sparse_kernel<double>();

}  // namespace fastlrp::cpu
