#include <algorithm>
#include <utility>

#include "../common/isa.h"
#include "conv_panels.h"
#include "conv_point_kernel.h"

static_assert(fastlrp::cpu::kPanel == fastlrp::cpu::kPointPanel);

#define FASTLRP_KERNEL_FILE "conv_point_full_kernel.inc"
#include "each_isa.inc"

namespace fastlrp::cpu {

void point_products(int64_t rows, int64_t depth, int64_t columns, const float* a, int64_t a_step, const float* b,
                    float* c, int64_t c_step) {
#if FASTLRP_X86
  switch (isa()) {
    case Isa::avx512:
      return avx512::products(rows, depth, columns, a, a_step, b, c, c_step);
    case Isa::avx2:
      return avx2::products(rows, depth, columns, a, a_step, b, c, c_step);
    default:
      break;
  }
#endif
  portable::products(rows, depth, columns, a, a_step, b, c, c_step);
}

}  // namespace fastlrp::cpu
