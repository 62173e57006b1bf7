#include "conv_few.h"

#include <algorithm>
#include <utility>

#include "../common/isa.h"
#include "../common/memory.h"
#include "../common/parallel.h"
#include "conv_panels.h"

namespace fastlrp::cpu {
namespace {

// Positions that are multiplied at once: whole groups of rows of the products, whose results stay in the cache.
constexpr int64_t kPositions = 24;

}  // namespace
}  // namespace fastlrp::cpu

#define FASTLRP_KERNEL_FILE "conv_few_kernel.inc"
#include "each_isa.inc"

namespace fastlrp::cpu {

int64_t ConvFew::columns() const { return (kernel[0] * kernel[1] * channels + kPanel - 1) / kPanel * kPanel; }

void conv_few_pack(const ConvFew& p, const float* weight, float* packed) {
  const int64_t taps = p.kernel[0] * p.kernel[1];
  std::fill_n(packed, p.outputs * p.columns(), 0.0f);
  for (int64_t o = 0; o < p.outputs; ++o) {
    for (int64_t c = 0; c < p.channels; ++c) {
      for (int64_t tap = 0; tap < taps; ++tap) {
        const int64_t column = tap * p.channels + c;
        packed[column / kPanel * kPanel * p.outputs + o * kPanel + column % kPanel] =
            weight[(o * p.channels + c) * taps + tap];
      }
    }
  }
}

void conv_few(const ConvFew& p) {
  if (p.samples == 0) {
    return;
  }
  auto run = portable::rows;
#if FASTLRP_X86
  run = isa() == Isa::avx512 ? avx512::rows : isa() == Isa::avx2 ? avx2::rows : run;
#endif
  // Threads take rows of y. Both of two neighbours make the products that both read.
  const int64_t wanted = std::min(p.size[0], (thread_count() + p.samples - 1) / p.samples);
  const int64_t each = (p.size[0] + wanted - 1) / wanted, parts = (p.size[0] + each - 1) / each;
  parallel_for(p.samples * parts, 1, [&](int64_t begin, int64_t end) {
    BufferPool& pool = BufferPool::shared();
    float* room = static_cast<float*>(pool.acquire(kPositions * (p.outputs + p.columns()) * sizeof(float)));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % parts * each;
      run(p, i / parts, first, std::min(first + each, p.size[0]), room);
    }
    pool.release(room);
  });
}

}  // namespace fastlrp::cpu
