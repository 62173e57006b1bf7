// acc[j][k] += sum over i of  w[row[i] + column[j]] * s[i][k]  by tiles. Of 32 rows i at once: the weights of up to 32
// input channels j are gathered into two tiles A[j][i], which meet two tiles of pairs B[i / 2][k][i % 2], 16 targets
// each, in four tiles C[j][k]. Output channels are innermost in the weights, so that 32 alive ones among 64 neighbours
// are one permutation of two registers.

#include "sparse_tiles.h"

#include <algorithm>
#include <stdexcept>

#include "sparse_pairs_kernel.h"

#if FASTLRP_X86_BF16
#include <immintrin.h>
#endif

namespace fastlrp::cpu {
namespace {

constexpr int64_t kTile = 16;    // rows of a tile, and float32 numbers of a row
constexpr int64_t kStep = 32;    // bfloat16 numbers of a row
constexpr int64_t kDepth = 256;  // rows i whose weights are gathered at once, a multiple of kStep
constexpr int64_t kWidest = 64;  // targets at once

// As the instruction LDTILECFG reads it.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfig) == 64, "as the processor reads it");

struct alignas(64) Scratch {
  Bf16 a[2 * kTile][kDepth];
  Bf16 b[kTile][2 * kWidest];  // the pairs of a step that are fewer than 16, zeros behind them
  float c[kTile][kTile];       // sums of fewer than 16 input channels
};

// a[j][i] = w[row[i] + column[j]] for i < count, 0 up to a multiple of kStep.
void gather_portable(const Bf16* weight, const int32_t* row, int64_t count, const int32_t* column, int64_t left,
                     Bf16 (*a)[kDepth]) {
  const int64_t whole = (count + kStep - 1) / kStep * kStep;
  for (int64_t j = 0; j < left; ++j) {
    for (int64_t i = 0; i < whole; ++i) {
      a[j][i].bits = i < count ? weight[row[i] + column[j]].bits : uint16_t{0};
    }
  }
}

#if FASTLRP_X86_BF16
// Of 32 numbers, some of them. GCC 12 warns of its own reductions.
FASTLRP_TARGET_AVX512 inline uint32_t largest(__mmask16 first, __m512i low, __mmask16 second, __m512i high) {
  uint32_t each[16], found = 0;
  const __m512i one = _mm512_maskz_mov_epi32(first, low), two = _mm512_maskz_mov_epi32(second, high);
  _mm512_storeu_si512(each, _mm512_maskz_max_epu32(0xffff, one, two));
  for (const uint32_t value : each) {
    found = std::max(found, value);
  }
  return found;
}

// Of 32 rows at a time: those within 64 neighbours of the first one that is left, by one permutation for each input
// channel, until none is left. Nothing outside these neighbours' first and last one is read.
FASTLRP_TARGET_AVX512 void gather_avx512(const Bf16* weight, const int32_t* row, int64_t count, const int32_t* column,
                                         int64_t left, Bf16 (*a)[kDepth]) {
  for (int64_t first = 0; first < count; first += kStep) {
    const int64_t here = std::min(kStep, count - first);
    const __mmask32 all = here == kStep ? 0xffffffffu : (1u << here) - 1;
    const __m512i low = _mm512_maskz_loadu_epi32(static_cast<__mmask16>(all), row + first);
    const __m512i high = _mm512_maskz_loadu_epi32(static_cast<__mmask16>(all >> 16), row + first + 16);
    const __m512i reach = _mm512_set1_epi32(64);
    const __m512i lower_halves = _mm512_set_epi16(62, 60, 58, 56, 54, 52, 50, 48, 46, 44, 42, 40, 38, 36, 34, 32, 30,
                                                  28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    for (__mmask32 open = all, done = 0; open != 0; open &= ~done) {
      const int32_t start = row[first + __builtin_ctz(open)];
      const __m512i from = _mm512_set1_epi32(start);
      const __m512i rel_low = _mm512_sub_epi32(low, from), rel_high = _mm512_sub_epi32(high, from);
      const __mmask16 low_in = _mm512_cmplt_epu32_mask(rel_low, reach) & static_cast<__mmask16>(open);
      const __mmask16 high_in = _mm512_cmplt_epu32_mask(rel_high, reach) & static_cast<__mmask16>(open >> 16);
      done = static_cast<uint32_t>(low_in) | static_cast<uint32_t>(high_in) << 16;
      const __m512i place = _mm512_permutex2var_epi16(rel_low, lower_halves, rel_high);
      const uint64_t read = ~uint64_t{0} >> (63 - largest(low_in, rel_low, high_in, rel_high));
      const bool fresh = open == all;
      for (int64_t j = 0; j < left; ++j) {
        const Bf16* w = weight + start + column[j];
        const __m512i one = _mm512_maskz_loadu_epi16(static_cast<__mmask32>(read), w);
        const __m512i two = _mm512_maskz_loadu_epi16(static_cast<__mmask32>(read >> 32), w + 32);
        const __m512i found = _mm512_maskz_permutex2var_epi16(done, one, place, two);
        if (fresh) {
          _mm512_storeu_si512(a[j] + first, found);
        } else {
          _mm512_mask_storeu_epi16(a[j] + first, done, found);
        }
      }
    }
  }
}
#endif

using Gather = decltype(&gather_portable);

Gather gather_for_isa() {
#if FASTLRP_X86_BF16
  if (isa() == Isa::avx512) {
    return gather_avx512;
  }
#endif
  return gather_portable;
}

// What AMX does, in memory.
struct Tiles {
  TileConfig config;
  bool configured = false;
  uint8_t data[8][kTile][64];

  // The instructions fault without a configuration.
  void check() const {
    if (!configured) {
      throw std::logic_error("tiles: not configured");
    }
  }
  void zero(int t) {
    check();
    std::memset(data[t], 0, sizeof data[t]);
  }
  void load(int t, const void* from, int64_t stride) {
    check();
    for (int r = 0; r < config.rows[t]; ++r) {
      std::memcpy(data[t][r], static_cast<const uint8_t*>(from) + r * stride, config.row_bytes[t]);
    }
  }
  void store(int t, void* to, int64_t stride) const {
    check();
    for (int r = 0; r < config.rows[t]; ++r) {
      std::memcpy(static_cast<uint8_t*>(to) + r * stride, data[t][r], config.row_bytes[t]);
    }
  }
  // TDPBF16PS: first and second numbers of the pairs are added up apart.
  void multiply_add(int c, int a, int b) {
    check();
    const auto narrow = [&](int t, int r, int i) {
      Bf16 value;
      std::memcpy(&value, data[t][r] + 2 * i, sizeof value);
      return flushed(value);
    };
    for (int m = 0; m < config.rows[c]; ++m) {
      for (int n = 0; n < config.row_bytes[c] / 4; ++n) {
        float first = 0, second = 0, sum;
        for (int k = 0; k < config.row_bytes[a] / 4; ++k) {
          first = flushed(first + narrow(a, m, 2 * k) * narrow(b, k, 2 * n));
          second = flushed(second + narrow(a, m, 2 * k + 1) * narrow(b, k, 2 * n + 1));
        }
        std::memcpy(&sum, data[c][m] + 4 * n, sizeof sum);
        sum = flushed(flushed(sum) + flushed(first + second));
        std::memcpy(data[c][m] + 4 * n, &sum, sizeof sum);
      }
    }
  }
};

Tiles& tiles_of_thread() {
  thread_local Tiles tiles;
  return tiles;
}

}  // namespace
}  // namespace fastlrp::cpu

// The includes differ in what a tile is. Tiles are named by constant numbers, as the instructions name them.
#define FASTLRP_TILES in_memory
#define FASTLRP_TILES_TARGET
#define FASTLRP_TILE_BEGIN() (tiles_of_thread().config = TileConfig{}, tiles_of_thread().configured = true)
#define FASTLRP_TILE_END() (tiles_of_thread().configured = false)
#define FASTLRP_TILE_ZERO(t) tiles_of_thread().zero(t)
#define FASTLRP_TILE_LOAD(t, from, stride) tiles_of_thread().load(t, from, stride)
#define FASTLRP_TILE_STORE(t, to, stride) tiles_of_thread().store(t, to, stride)
#define FASTLRP_TILE_MULTIPLY_ADD(c, a, b) tiles_of_thread().multiply_add(c, a, b)
#include "sparse_tiles.inc"

#if FASTLRP_X86_BF16
namespace fastlrp::cpu {
namespace {

// What other libraries had configured in this thread: they may rely on finding it again.
struct Before {
  TileConfig config;
};
thread_local Before before;

FASTLRP_TARGET_AMX void begin_amx() {
  const TileConfig mine;
  __asm__ volatile("" ::: "memory");
  _tile_storeconfig(&before.config);
  _tile_loadconfig(&mine);
}

FASTLRP_TARGET_AMX void end_amx() {
  // A configuration of palette 0 is none.
  if (before.config.palette == 0) {
    _tile_release();
  } else {
    _tile_loadconfig(&before.config);
  }
}

}  // namespace
}  // namespace fastlrp::cpu

// The intrinsics of GCC don't say that they touch memory.
#define FASTLRP_TILES amx
#define FASTLRP_TILES_TARGET FASTLRP_TARGET_AMX
#define FASTLRP_TILE_BEGIN() begin_amx()
#define FASTLRP_TILE_END() end_amx()
#define FASTLRP_TILE_ZERO(t) _tile_zero(t)
#define FASTLRP_TILE_LOAD(t, from, stride) \
  do {                                     \
    __asm__ volatile("" ::: "memory");     \
    _tile_loadd(t, from, stride);          \
  } while (false)
#define FASTLRP_TILE_STORE(t, to, stride) \
  do {                                    \
    _tile_stored(t, to, stride);          \
    __asm__ volatile("" ::: "memory");    \
  } while (false)
#define FASTLRP_TILE_MULTIPLY_ADD(c, a, b) _tile_dpbf16ps(c, a, b)
#include "sparse_tiles.inc"
#endif

namespace fastlrp::cpu {

PairsKernel tiles_kernel(bool by_amx) {
#if FASTLRP_X86_BF16
  if (by_amx) {
    return {amx::multiply_add, amx::begin, amx::end};
  }
#endif
  return {in_memory::multiply_add, in_memory::begin, in_memory::end};
}

}  // namespace fastlrp::cpu
