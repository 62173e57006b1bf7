#include "conv_winograd_kernel.h"

#include <algorithm>
#include <utility>

#include "../common/isa.h"

#if FASTLRP_X86
#include <immintrin.h>
#endif

namespace fastlrp::cpu {
namespace {

// Points 0, 1, -1, 1/2, -2 and infinity: of those with small numbers the ones that lose the fewest digits. All numbers
// are exact, and each row's size is a power of two times that of the textbook's.
struct ToParts {
  static constexpr float at[6][6] = {{1, -1.5f, -2, 1.5f, 1, 0}, {0, -1, 0.5f, 2.5f, 1, 0},
                                     {0, 1, -2.5f, 0.5f, 1, 0},  {0, -2, -1, 2, 1, 0},
                                     {0, 0.5f, -1, -0.5f, 1, 0}, {0, 1, -1.5f, -2, 1.5f, 1}};
};
struct FromParts {
  static constexpr float at[4][6] = {
      {1, 1, 1, 2, 0.5f, 0}, {0, 1, -1, 1, -1, 0}, {0, 1, 1, 0.5f, 2, 0}, {0, 1, -1, 0.25f, -4, 1}};
};

}  // namespace
}  // namespace fastlrp::cpu

#define FASTLRP_KERNEL_FILE "conv_winograd_kernel.inc"
#include "each_isa.inc"

namespace fastlrp::cpu {

WinogradTiles winograd_tiles() {
#if FASTLRP_X86
  switch (isa()) {
    case Isa::avx512:
      return avx512::tiles;
    case Isa::avx2:
      return avx2::tiles;
    default:
      break;
  }
#endif
  return portable::tiles;
}

}  // namespace fastlrp::cpu
