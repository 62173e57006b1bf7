// acc[j][k] += sum over i of  w[row[i] + column[j]] * s[i][k]  by tiles. Of 32 rows i at once: the weights of up to 32
// input channels j are gathered into two tiles A[j][i], which meet two tiles of pairs B[i / 2][k][i % 2], 16 targets
// each, in four tiles C[j][k]; up to 16 input channels are one tile, which meets up to four. Output channels are
// innermost in the weights, so that the alive ones among 32 neighbours are one permutation of a register.

#include "sparse_tiles.h"

#include <algorithm>
#include <cmath>
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

// In memory that is never written: of a local one, compilers may leave out what they don't see the instruction read,
// and the intrinsic of GCC names the first 8 bytes only.
constexpr TileConfig kWhole;

// Where the rows lie: for 32 of them at a time one window of 32 neighbours after the other, until each row is in one.
struct alignas(64) Windows {
  uint16_t place[kDepth][kStep];  // of a row, in the window
  int32_t start[kDepth];          // the window's first neighbour
  uint32_t rows[kDepth];          // those of the 32 rows that are in the window
  int32_t end[kDepth / kStep];    // behind the last window of each 32 rows
  uint32_t read;                  // which of 32 neighbours lie between the first and the last row of all
};

struct alignas(64) Scratch {
  Bf16 a[2 * kTile][kDepth];
  Bf16 b[kTile][2 * kWidest];  // the pairs of a step that are fewer than 16, zeros behind them
  float c[kTile][kTile];       // sums of fewer than 16 input channels
  Windows windows;
};

// take: a[j][i] = w[row[i] + column[j]] for i < count <= kDepth, 0 up to a multiple of kStep; find: what it needs to
// know of the rows.
struct Gather {
  void (*find)(const int32_t* row, int64_t count, Windows& windows);
  void (*take)(const Bf16* weight, const int32_t* row, int64_t count, const Windows& windows, const int32_t* column,
               int64_t left, Bf16 (*a)[kDepth]);
};

void take_portable(const Bf16* weight, const int32_t* row, int64_t count, const Windows&, const int32_t* column,
                   int64_t left, Bf16 (*a)[kDepth]) {
  const int64_t whole = (count + kStep - 1) / kStep * kStep;
  for (int64_t j = 0; j < left; ++j) {
    for (int64_t i = 0; i < whole; ++i) {
      a[j][i].bits = i < count ? weight[row[i] + column[j]].bits : uint16_t{0};
    }
  }
}

#if FASTLRP_X86_BF16
struct Extent {
  int64_t first, last;
};

FASTLRP_TARGET_AVX512 Extent extent_of(const int32_t* row, int64_t count) {
  __mmask16 falls = 0;
  for (int64_t i = 1; i < count; i += 16) {
    const auto here = static_cast<__mmask16>(count - i >= 16 ? 0xffff : (1 << (count - i)) - 1);
    const __m512i before = _mm512_maskz_loadu_epi32(here, row + i - 1);
    falls |= _mm512_mask_cmplt_epi32_mask(here, _mm512_maskz_loadu_epi32(here, row + i), before);
  }
  if (falls == 0) {
    return {row[0], row[count - 1]};
  }
  return {*std::min_element(row, row + count), *std::max_element(row, row + count)};
}

// Up to 32 rows and the windows that are found for them. A window that would reach behind the last one of all rows
// begins earlier, so that what it reads lies between the first and the last row: there are only weights. Where all rows
// are fewer than 32 neighbours, reading is masked.
struct Finder {
  __m512i low, high;
  int32_t latest;
  Windows& windows;
  int32_t at;

  // The rows of `open` that are in the window from `start` on.
  FASTLRP_TARGET_AVX512 uint32_t add(int32_t start, uint32_t open) {
    const __m512i reach = _mm512_set1_epi32(kStep);
    const __m512i lower_halves = _mm512_set_epi16(62, 60, 58, 56, 54, 52, 50, 48, 46, 44, 42, 40, 38, 36, 34, 32, 30,
                                                  28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    start = std::min(start, latest);
    const __m512i from = _mm512_set1_epi32(start);
    const __m512i rel_low = _mm512_sub_epi32(low, from), rel_high = _mm512_sub_epi32(high, from);
    const uint32_t low_in = _mm512_cmplt_epu32_mask(rel_low, reach);
    const uint32_t high_in = _mm512_cmplt_epu32_mask(rel_high, reach);
    const uint32_t found = (low_in | high_in << 16) & open;
    _mm512_store_si512(windows.place[at], _mm512_permutex2var_epi16(rel_low, lower_halves, rel_high));
    windows.start[at] = start;
    windows.rows[at] = found;
    at += found != 0;
    return found;
  }
};

// Rows that ascend are in windows side by side, of which none has to wait for what another one found; for what is left,
// which needs another order, a window begins at the first row that is in none yet.
FASTLRP_TARGET_AVX512 void find_avx512(const int32_t* row, int64_t count, Windows& windows) {
  constexpr int64_t kLast = kStep - 1;
  const Extent all_rows = extent_of(row, count);
  windows.read = ~uint32_t{0} >> (kLast - std::min(all_rows.last - all_rows.first, kLast));
  Finder finder{{}, {}, static_cast<int32_t>(std::max(all_rows.first, all_rows.last - kLast)), windows, 0};
  for (int64_t first = 0; first < count; first += kStep) {
    const int64_t here = std::min(kStep, count - first);
    const int32_t begin = row[first], end = row[first + here - 1];
    uint32_t open = ~uint32_t{0} >> (kStep - here);
    finder.low = _mm512_maskz_loadu_epi32(static_cast<__mmask16>(open), row + first);
    finder.high = _mm512_maskz_loadu_epi32(static_cast<__mmask16>(open >> 16), row + first + 16);
    const uint32_t all = open;
    if (begin <= end && int64_t{end} - begin < kDepth) {
      for (int64_t start = begin; start <= end; start += kStep) {
        open &= ~finder.add(static_cast<int32_t>(start), all);
      }
    }
    while (open != 0) {
      open &= ~finder.add(row[first + __builtin_ctz(open)], open);
    }
    windows.end[first / kStep] = finder.at;
  }
}

// Of the windows from `at` on, each row that is in one of them; the others stay, or are 0 if nothing was gathered yet.
template <int some, bool whole>
FASTLRP_TARGET_AVX512 void take_from(const Bf16* weight, const Windows& windows, int64_t at, bool fresh,
                                     const int32_t* column, int64_t left, Bf16* to) {
  __m512i place[some];
  __mmask32 rows[some];
  const Bf16* from[some];
  for (int n = 0; n < some; ++n) {
    place[n] = _mm512_load_si512(windows.place[at + n]);
    rows[n] = windows.rows[at + n];
    from[n] = weight + windows.start[at + n];
  }
  for (int64_t j = 0; j < left; ++j, to += kDepth) {
    __m512i found = fresh ? _mm512_setzero_si512() : _mm512_load_si512(to);
    for (int n = 0; n < some; ++n) {
      const Bf16* w = from[n] + column[j];
      found = _mm512_mask_permutexvar_epi16(
          found, rows[n], place[n],
          whole ? _mm512_loadu_si512(w) : _mm512_maskz_loadu_epi16(static_cast<__mmask32>(windows.read), w));
    }
    _mm512_store_si512(to, found);
  }
}

FASTLRP_TARGET_AVX512 void take_avx512(const Bf16* weight, const int32_t*, int64_t count, const Windows& windows,
                                       const int32_t* column, int64_t left, Bf16 (*a)[kDepth]) {
  constexpr int64_t kMost = 6;  // windows at once
  constexpr decltype(&take_from<1, true>) kTake[] = {take_from<1, true>, take_from<2, true>, take_from<3, true>,
                                                     take_from<4, true>, take_from<5, true>, take_from<kMost, true>};
  int64_t at = 0;
  for (int64_t first = 0; first < count; first += kStep) {
    for (const int64_t begin = at, end = windows.end[first / kStep]; at < end; at += std::min(kMost, end - at)) {
      const auto of_count = windows.read == ~uint32_t{0} ? kTake[std::min(kMost, end - at) - 1] : take_from<1, false>;
      of_count(weight, windows, at, at == begin, column, left, a[0] + first);
    }
  }
}
#endif

Gather gather_for_isa() {
#if FASTLRP_X86_BF16
  if (isa() == Isa::avx512) {
    return {find_avx512, take_avx512};
  }
#endif
  return {[](const int32_t*, int64_t, Windows&) {}, take_portable};
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
  void multiply_add(int c, int a, int b);
};

// TDPBF16PS: first and second numbers of the pairs are added up apart, by fused products.
struct TileProduct {
  static FASTLRP_INLINE float narrow(const uint8_t* from) {
    Bf16 value;
    std::memcpy(&value, from, sizeof value);
    return flushed(value);
  }
  static FASTLRP_INLINE void run(Tiles* tiles, int c, int a, int b) {
    const TileConfig& config = tiles->config;
    for (int m = 0; m < config.rows[c]; ++m) {
      const uint8_t* row = tiles->data[a][m];
      for (int n = 0; n < config.row_bytes[c] / 4; ++n) {
        float first = 0, second = 0, sum;
        for (int k = 0; k < config.row_bytes[a] / 4; ++k) {
          const uint8_t* pair = tiles->data[b][k] + 4 * n;
          first = flushed(std::fma(narrow(row + 4 * k), narrow(pair), first));
          second = flushed(std::fma(narrow(row + 4 * k + 2), narrow(pair + 2), second));
        }
        std::memcpy(&sum, tiles->data[c][m] + 4 * n, sizeof sum);
        sum = flushed(flushed(sum) + flushed(first + second));
        std::memcpy(tiles->data[c][m] + 4 * n, &sum, sizeof sum);
      }
    }
  }
};

void Tiles::multiply_add(int c, int a, int b) {
  check();
  run_best<TileProduct>(this, c, a, b);
}

Tiles& tiles_of_thread() {
  thread_local Tiles tiles;
  return tiles;
}

}  // namespace
}  // namespace fastlrp::cpu

// The includes differ in what a tile is. Tiles are named by constant numbers, as the instructions name them.
#define FASTLRP_TILES in_memory
#define FASTLRP_TILES_TARGET
#define FASTLRP_TILE_BEGIN() (tiles_of_thread().config = kWhole, tiles_of_thread().configured = true)
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
  _tile_storeconfig(&before.config);
  _tile_loadconfig(&kWhole);
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
