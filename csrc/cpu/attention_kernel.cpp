#include "attention_kernel.h"

#include <algorithm>
#include <limits>
#include <type_traits>
#include <utility>

#include "../common/isa.h"
#include "attention_exp.h"

#define FASTLRP_KERNEL_FILE "attention_kernel.inc"
#include "each_isa.inc"

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
