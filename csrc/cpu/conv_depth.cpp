#include "conv_depth.h"

#include <algorithm>
#include <utility>

#include "../common/isa.h"
#include "../common/memory.h"
#include "../common/parallel.h"

namespace fastlrp::cpu {
namespace {

// The taps along one axis that some outputs read: which, and how far from the first each of them finds what it reads.
struct Taps {
  int64_t count = 0;
  int64_t tap[kDepthTaps], offset[kDepthTaps];
};

// Those of axis `axis` that place `place` of y reads, in units of places of x; whether these are there is not asked.
Taps taps_of(const ConvDepth& p, int axis, int64_t place) {
  Taps found;
  for (int64_t tap = 0; tap < p.kernel[axis]; ++tap) {
    const int64_t at = place + p.padding[axis] - tap * p.dilation[axis];
    if (at % p.stride[axis] == 0) {
      found.tap[found.count] = tap;
      found.offset[found.count++] = at / p.stride[axis];
    }
  }
  return found;
}

// The rows of x that one row of y reads, and the weights of their taps.
struct Read {
  int64_t count = 0;
  const float* row[kDepthTaps];
  const float* weight[kDepthTaps];
};

}  // namespace
}  // namespace fastlrp::cpu

#define FASTLRP_KERNEL_FILE "conv_depth_kernel.inc"
#include "each_isa.inc"

namespace fastlrp::cpu {

void conv_depth(const ConvDepth& p) {
  if (p.samples == 0) {
    return;
  }
  auto run = p.sign == nullptr ? portable::rows<false> : portable::rows<true>;
#if FASTLRP_X86
  if (isa() == Isa::avx512) {
    run = p.sign == nullptr ? avx512::rows<false> : avx512::rows<true>;
  } else if (isa() == Isa::avx2) {
    run = p.sign == nullptr ? avx2::rows<false> : avx2::rows<true>;
  }
#endif
  // Threads take rows of y. Both of two neighbours scale the rows of x that both read.
  const int64_t wanted = std::min(p.size[0], (thread_count() + p.samples - 1) / p.samples);
  const int64_t each = (p.size[0] + wanted - 1) / wanted, parts = (p.size[0] + each - 1) / each;
  const int64_t room = p.scale == nullptr ? 1 : p.rows_read() * p.out_size[1] * p.channels;
  parallel_for(p.samples * parts, 1, [&](int64_t begin, int64_t end) {
    BufferPool& pool = BufferPool::shared();
    float* scaled = static_cast<float*>(pool.acquire(room * sizeof(float)));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % parts * each;
      run(p, i / parts, first, std::min(first + each, p.size[0]), scaled);
    }
    pool.release(scaled);
  });
}

}  // namespace fastlrp::cpu
