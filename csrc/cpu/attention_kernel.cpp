#include "attention_kernel.h"

#include <algorithm>
#include <limits>
#include <type_traits>
#include <utility>

#include "../common/isa.h"
#include "attention_exp.h"

// clang-format off: the order of these includes is that of the instruction sets.
#define FASTLRP_KERNEL portable
#define FASTLRP_KERNEL_TARGET
#define FASTLRP_KERNEL_BYTES 16
#include "attention_kernel.inc"

#if FASTLRP_X86
#define FASTLRP_KERNEL avx2
#define FASTLRP_KERNEL_TARGET FASTLRP_TARGET_AVX2
#define FASTLRP_KERNEL_BYTES 32
#include "attention_kernel.inc"

#define FASTLRP_KERNEL avx512
#define FASTLRP_KERNEL_TARGET FASTLRP_TARGET_AVX512
#define FASTLRP_KERNEL_BYTES 64
#include "attention_kernel.inc"
#endif
// clang-format on

namespace fastlrp::cpu {

template <class T>
AttentionKernel<T> attention_kernel() {
#if FASTLRP_X86
  switch (isa()) {
    case Isa::avx512:
      return avx512::attention_functions<T>();
    case Isa::avx2:
      return avx2::attention_functions<T>();
    default:
      break;
  }
#endif
  return portable::attention_functions<T>();
}

template AttentionKernel<float> attention_kernel<float>();
template AttentionKernel<double> attention_kernel<double>();

}  // namespace fastlrp::cpu
