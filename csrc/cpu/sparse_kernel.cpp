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

#define FASTLRP_KERNEL_FILE "sparse_kernel.inc"
#include "each_isa.inc"

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
