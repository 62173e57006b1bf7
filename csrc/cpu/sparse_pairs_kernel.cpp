#include "sparse_pairs_kernel.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "sparse_tiles.h"

#if FASTLRP_X86_BF16
#include <immintrin.h>
#endif

namespace fastlrp::cpu {
namespace {

struct ScalePairs {
  static FASTLRP_INLINE void run(int64_t width, int64_t valid, const float* first, float first_scale,
                                 const float* second, float second_scale, uint32_t* to) {
    for (int64_t k = 0; k < valid; ++k) {
      to[k] = static_cast<uint32_t>(Bf16(first[k] * first_scale).bits) |
              static_cast<uint32_t>(Bf16(second[k] * second_scale).bits) << 16;
    }
    for (int64_t k = valid; k < width; ++k) {
      to[k] = 0;
    }
  }
};

// Of one pair and all targets: the bits of _mm512_dpbf16_ps.
struct MultiplySoftware {
  static FASTLRP_INLINE void run(bool fresh, int64_t width, int64_t left, const Bf16* weight, const int32_t* row,
                                 int64_t count, const Bf16* s, int64_t s_stride, const int32_t* column, float* acc,
                                 int64_t acc_stride) {
    for (int64_t j = 0; j < left; ++j) {
      for (int64_t k = 0; k < width; ++k) {
        float sum = fresh ? 0.0f : flushed(acc[j * acc_stride + k]);
        for (int64_t i = 0; i < count; i += 2) {
          const Bf16* pair = s + i * s_stride + 2 * k;
          sum = flushed(std::fma(flushed(weight[row[i + 1] + column[j]]), flushed(pair[1]), sum));
          sum = flushed(std::fma(flushed(weight[row[i] + column[j]]), flushed(pair[0]), sum));
        }
        acc[j * acc_stride + k] = sum;
      }
    }
  }
};

void multiply_software(bool fresh, int64_t width, int64_t left, const Bf16* weight, const int32_t* row, int64_t count,
                       const Bf16* s, int64_t s_stride, const int32_t* column, float* acc, int64_t acc_stride) {
  run_best<MultiplySoftware>(fresh, width, left, weight, row, count, s, s_stride, column, acc, acc_stride);
}

#if FASTLRP_X86_BF16
constexpr int kVector = 16;  // targets

// Sum number n is that of input channel n / vectors and register n % vectors, as in sparse_kernel.inc. The two weights
// of a pair come from two rows: one broadcast each, the second into every other place.
template <int vectors, int... n>
FASTLRP_TARGET_AVX512_BF16 inline void tile(std::integer_sequence<int, n...>, bool fresh, const Bf16* weight,
                                            const int32_t* row, int64_t count, const Bf16* s, int64_t s_stride,
                                            const int32_t* column, float* acc, int64_t acc_stride) {
  constexpr __mmask32 second = 0xaaaaaaaau;
  const int64_t at[] = {column[n / vectors]...};
  __m512 sum[] = {
      (fresh ? _mm512_setzero_ps() : _mm512_loadu_ps(acc + n / vectors * acc_stride + n % vectors * kVector))...};
  for (int64_t i = 0; i < count; i += 2) {
    const uint16_t* w0 = reinterpret_cast<const uint16_t*>(weight + row[i]);
    const uint16_t* w1 = reinterpret_cast<const uint16_t*>(weight + row[i + 1]);
    __asm__("" : "+r"(w0), "+r"(w1));  // as FASTLRP_OPAQUE in sparse_kernel.cpp
    __m512bh value[vectors];
    for (int v = 0; v < vectors; ++v) {
      value[v] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(s + v * 2 * kVector));
    }
    s += 2 * s_stride;
    __m512i w = _mm512_setzero_si512();
    ((w = n % vectors != 0 ? w
                           : _mm512_mask_set1_epi16(_mm512_set1_epi16(static_cast<int16_t>(w0[at[n]])), second,
                                                    static_cast<int16_t>(w1[at[n]])),
      sum[n] = _mm512_dpbf16_ps(sum[n], value[n % vectors], reinterpret_cast<__m512bh>(w))),
     ...);
  }
  (_mm512_storeu_ps(acc + n / vectors * acc_stride + n % vectors * kVector, sum[n]), ...);
}

template <int vectors, int rows>
FASTLRP_TARGET_AVX512_BF16 void tail(bool fresh, int64_t left, const Bf16* weight, const int32_t* row, int64_t count,
                                     const Bf16* s, int64_t s_stride, const int32_t* column, float* acc,
                                     int64_t acc_stride) {
  if constexpr (rows > 0) {
    if (left == rows) {
      tile<vectors>(std::make_integer_sequence<int, rows * vectors>{}, fresh, weight, row, count, s, s_stride, column,
                    acc, acc_stride);
    } else {
      tail<vectors, rows - 1>(fresh, left, weight, row, count, s, s_stride, column, acc, acc_stride);
    }
  }
}

// In as many equal parts as need be: a short rest would wait for its own sums.
template <int vectors, int rows>
FASTLRP_TARGET_AVX512_BF16 void columns(bool fresh, int64_t left, const Bf16* weight, const int32_t* row, int64_t count,
                                        const Bf16* s, int64_t s_stride, const int32_t* column, float* acc,
                                        int64_t acc_stride) {
  for (int64_t parts = (left + rows - 1) / rows; parts > 0; --parts) {
    const int64_t some = (left + parts - 1) / parts;
    tail<vectors, rows>(fresh, some, weight, row, count, s, s_stride, column, acc, acc_stride);
    column += some;
    acc += some * acc_stride;
    left -= some;
  }
}

// The weights of pairs side by side, of all input channels between the first and the last that are alive: then both
// weights of a pair are one broadcast, which takes a load and none of the units that multiply.
struct alignas(64) Joined {
  static constexpr int64_t kSpan = 64;  // input channels
  static constexpr int64_t kCount =
      128;  // rows at once: they and what they are multiplied with stay in a first-level cache
  uint32_t pairs[kCount / 2][kSpan];

  // Of channels begin + (first … last), which lie in kSpan / 2 if `half`. Only weights of these are read.
  template <bool half>
  FASTLRP_TARGET_AVX512_BF16 void join(const Bf16* weight, const int32_t* row, int64_t count, int64_t first,
                                       int64_t last) {
    const __m512i lower = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6,
                                           37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    const __m512i upper = _mm512_add_epi16(lower, _mm512_set1_epi16(16));
    const uint64_t asked = (~uint64_t{0} >> (kSpan - 1 - last)) & (~uint64_t{0} << first);
    const __mmask32 low = static_cast<__mmask32>(asked), high = static_cast<__mmask32>(asked >> 32);
    for (int64_t i = 0; i < count; i += 2) {
      const Bf16 *one = weight + row[i], *two = weight + row[i + 1];
      uint32_t* to = pairs[i / 2];
      const __m512i a = _mm512_maskz_loadu_epi16(low, one), b = _mm512_maskz_loadu_epi16(low, two);
      _mm512_store_si512(to, _mm512_permutex2var_epi16(a, lower, b));
      _mm512_store_si512(to + 16, _mm512_permutex2var_epi16(a, upper, b));
      if constexpr (!half) {
        const __m512i c = _mm512_maskz_loadu_epi16(high, one + 32), d = _mm512_maskz_loadu_epi16(high, two + 32);
        _mm512_store_si512(to + 32, _mm512_permutex2var_epi16(c, lower, d));
        _mm512_store_si512(to + 48, _mm512_permutex2var_epi16(c, upper, d));
      }
    }
  }
};

// The sums of `tile` in the same order.
template <int vectors, int... n>
FASTLRP_TARGET_AVX512_BF16 inline void joined_tile(std::integer_sequence<int, n...>, bool fresh, const uint32_t* pairs,
                                                   int64_t count, const Bf16* s, int64_t s_stride,
                                                   const int32_t* column, float* acc, int64_t acc_stride) {
  const int64_t at[] = {column[n / vectors]...};
  __m512 sum[] = {
      (fresh ? _mm512_setzero_ps() : _mm512_loadu_ps(acc + n / vectors * acc_stride + n % vectors * kVector))...};
  for (int64_t i = 0; i < count; i += 2, pairs += Joined::kSpan) {
    const uint32_t* weight = pairs;
    __asm__("" : "+r"(weight));
    __m512bh value[vectors];
    for (int v = 0; v < vectors; ++v) {
      value[v] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(s + v * 2 * kVector));
    }
    s += 2 * s_stride;
    __m512i w = _mm512_setzero_si512();
    ((w = n % vectors != 0 ? w : _mm512_set1_epi32(static_cast<int32_t>(weight[at[n]])),
      sum[n] = _mm512_dpbf16_ps(sum[n], value[n % vectors], reinterpret_cast<__m512bh>(w))),
     ...);
  }
  (_mm512_storeu_ps(acc + n / vectors * acc_stride + n % vectors * kVector, sum[n]), ...);
}

template <int vectors, int rows>
FASTLRP_TARGET_AVX512_BF16 void joined_tail(bool fresh, int64_t left, const uint32_t* pairs, int64_t count,
                                            const Bf16* s, int64_t s_stride, const int32_t* column, float* acc,
                                            int64_t acc_stride) {
  if constexpr (rows > 0) {
    if (left == rows) {
      joined_tile<vectors>(std::make_integer_sequence<int, rows * vectors>{}, fresh, pairs, count, s, s_stride, column,
                           acc, acc_stride);
    } else {
      joined_tail<vectors, rows - 1>(fresh, left, pairs, count, s, s_stride, column, acc, acc_stride);
    }
  }
}

template <int vectors, int rows>
FASTLRP_TARGET_AVX512_BF16 void joined_columns(bool fresh, int64_t left, const uint32_t* pairs, int64_t count,
                                               const Bf16* s, int64_t s_stride, const int32_t* column, float* acc,
                                               int64_t acc_stride) {
  for (int64_t parts = (left + rows - 1) / rows; parts > 0; --parts) {
    const int64_t some = (left + parts - 1) / parts;
    joined_tail<vectors, rows>(fresh, some, pairs, count, s, s_stride, column, acc, acc_stride);
    column += some;
    acc += some * acc_stride;
    left -= some;
  }
}

// Up to kSpan neighbouring channels, whose first is a multiple of 32 at or before column[0].
FASTLRP_TARGET_AVX512_BF16 void multiply_joined(bool fresh, int64_t width, int64_t left, const Bf16* weight,
                                                const int32_t* row, int64_t count, const Bf16* s, int64_t s_stride,
                                                const int32_t* column, int64_t begin, float* acc, int64_t acc_stride) {
  Joined joined;
  const int64_t first = column[0] - begin, last = column[left - 1] - begin;
  int32_t place[Joined::kSpan];
  for (int64_t j = 0; j < left; ++j) {
    place[j] = static_cast<int32_t>(column[j] - begin);
  }
  for (; count > 0; count -= Joined::kCount, row += Joined::kCount, s += Joined::kCount * s_stride) {
    const int64_t here = std::min(count, Joined::kCount);
    if (last < Joined::kSpan / 2) {
      joined.join<true>(weight + begin, row, here, first, last);
    } else {
      joined.join<false>(weight + begin, row, here, first, last);
    }
    int64_t k = 0;
    for (; k + 2 * kVector <= width; k += 2 * kVector) {
      joined_columns<2, 8>(fresh, left, joined.pairs[0], here, s + 2 * k, s_stride, place, acc + k, acc_stride);
    }
    for (; k < width; k += kVector) {
      joined_columns<1, 12>(fresh, left, joined.pairs[0], here, s + 2 * k, s_stride, place, acc + k, acc_stride);
    }
    fresh = false;
  }
}

FASTLRP_TARGET_AVX512_BF16 void multiply_apart(bool fresh, int64_t width, int64_t left, const Bf16* weight,
                                               const int32_t* row, int64_t count, const Bf16* s, int64_t s_stride,
                                               const int32_t* column, float* acc, int64_t acc_stride) {
  int64_t k = 0;
  for (; k + 4 * kVector <= width; k += 4 * kVector) {
    columns<4, 6>(fresh, left, weight, row, count, s + 2 * k, s_stride, column, acc + k, acc_stride);
  }
  for (; k + 2 * kVector <= width; k += 2 * kVector) {
    columns<2, 8>(fresh, left, weight, row, count, s + 2 * k, s_stride, column, acc + k, acc_stride);
  }
  for (; k < width; k += kVector) {
    columns<1, 12>(fresh, left, weight, row, count, s + 2 * k, s_stride, column, acc + k, acc_stride);
  }
}

// On one core of an AMD EPYC (Zen 5) at density 0.5: 32 targets 369 GFLOP/s joined, 300 apart; 16 targets 258 and 170;
// 64 targets 426 and 438. Joining 64 channels of a pair takes as long as the broadcasts of 10 to 14 channels for their
// second weights.
void multiply_avx512(bool fresh, int64_t width, int64_t left, const Bf16* weight, const int32_t* row, int64_t count,
                     const Bf16* s, int64_t s_stride, const int32_t* column, float* acc, int64_t acc_stride) {
  const int64_t least = width <= kVector ? 10 : width <= 3 * kVector ? 14 : INT64_MAX;
  while (left > 0) {
    const int64_t begin = column[0] / 32 * 32;
    const bool one_span = column[left - 1] < begin + Joined::kSpan;
    const int64_t some = one_span ? left : std::lower_bound(column, column + left, begin + Joined::kSpan) - column;
    const bool half = column[some - 1] < begin + Joined::kSpan / 2;
    if (some * (half ? 2 : 1) >= least) {
      multiply_joined(fresh, width, some, weight, row, count, s, s_stride, column, begin, acc, acc_stride);
    } else {
      multiply_apart(fresh, width, some, weight, row, count, s, s_stride, column, acc, acc_stride);
    }
    column += some;
    acc += some * acc_stride;
    left -= some;
  }
}
#endif

}  // namespace

void scale_pairs(int64_t width, int64_t valid, int64_t count, const float* source, int64_t stride, const int64_t* rows,
                 const float* scale, Bf16* to) {
  for (int64_t e = 0; e < count; e += 2) {
    const bool first = rows[e] >= 0, second = rows[e + 1] >= 0;
    if (!first && !second) {
      std::memset(static_cast<void*>(to + e * width), 0, 2 * width * sizeof(Bf16));
      continue;
    }
    // A row that is not there is read as its partner times zero, which may be NaN: it is cleared afterwards.
    const float* one = source + rows[first ? e : e + 1] * stride;
    const float* two = source + rows[second ? e + 1 : e] * stride;
    uint32_t* pair = reinterpret_cast<uint32_t*>(to + e * width);
    run_best<ScalePairs>(width, valid, one, scale[e], two, scale[e + 1], pair);
    for (int64_t k = 0; k < valid && !(first && second); ++k) {
      pair[k] &= first ? 0xffffu : 0xffff0000u;
    }
  }
}

PairsKernel pairs_kernel(bool tiles) {
  const Bf16Unit unit = bf16_unit();
  if (tiles) {
    return tiles_kernel(unit == Bf16Unit::amx);
  }
#if FASTLRP_X86_BF16
  if (unit == Bf16Unit::avx512_bf16) {
    return {multiply_avx512, nullptr, nullptr};
  }
#endif
  return {multiply_software, nullptr, nullptr};
}

}  // namespace fastlrp::cpu
