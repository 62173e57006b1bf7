#include "conv_point_kernel.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "../common/bf16_unit.h"
#include "sparse_tiles.h"

#if FASTLRP_X86_BF16
#include <immintrin.h>
#endif

namespace fastlrp::cpu {
namespace {

// The bits of _mm512_dpbf16_ps.
struct ProductsSoftware {
  static FASTLRP_INLINE void run(int64_t rows, int64_t depth, int64_t columns, const Bf16* a, int64_t a_step,
                                 const Bf16* b, float* c, int64_t c_step) {
    for (int64_t row = 0; row < rows; ++row, a += a_step, c += c_step) {
      for (int64_t column = 0; column < columns; ++column) {
        const Bf16* pair = b + column / kPointPanel * kPointPanel * depth + column % kPointPanel * 2;
        float sum = 0;
        for (int64_t k = 0; k < depth; k += 2, pair += 2 * kPointPanel) {
          sum = flushed(std::fma(flushed(a[k + 1]), flushed(pair[1]), sum));
          sum = flushed(std::fma(flushed(a[k]), flushed(pair[0]), sum));
        }
        c[column] = sum;
      }
    }
  }
};

struct Rounded {
  static FASTLRP_INLINE void run(int64_t count, const float* __restrict from, Bf16* __restrict to) {
    for (int64_t i = 0; i < count; ++i) {
      to[i] = Bf16(from[i]);
    }
  }
};

template <class From, class Number>
struct RoundedProducts {
  static FASTLRP_INLINE void run(int64_t count, const From* __restrict from, const float* __restrict scale,
                                 Number* __restrict to) {
    for (int64_t i = 0; i < count; ++i) {
      to[i] = Number(static_cast<float>(from[i]) * scale[i]);
    }
  }
};

#if FASTLRP_X86_BF16
// Some rows and `vectors` panels: sum number n is that of row n / vectors and panel n % vectors.
template <int vectors, int... n>
FASTLRP_TARGET_AVX512_BF16 inline void sums(std::integer_sequence<int, n...>, int64_t depth, const Bf16* a,
                                            int64_t a_step, const Bf16* b, float* c, int64_t c_step) {
  __m512 sum[] = {(static_cast<void>(n), _mm512_setzero_ps())...};
  const Bf16* rows[] = {(a + n / vectors * a_step)...};
  for (int64_t k = 0; k < depth; k += 2, b += 2 * kPointPanel) {
    __m512bh value[vectors];
    for (int v = 0; v < vectors; ++v) {
      value[v] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(b + v * kPointPanel * depth));
    }
    __m512i pair = _mm512_setzero_si512();
    ((pair = n % vectors != 0 ? pair : _mm512_set1_epi32(*reinterpret_cast<const int32_t*>(rows[n] + k)),
      sum[n] = _mm512_dpbf16_ps(sum[n], value[n % vectors], reinterpret_cast<__m512bh>(pair))),
     ...);
  }
  (_mm512_storeu_ps(c + n / vectors * c_step + n % vectors * kPointPanel, sum[n]), ...);
}

template <int vectors, int rows>
FASTLRP_TARGET_AVX512_BF16 void some(int64_t count, int64_t depth, const Bf16* a, int64_t a_step, const Bf16* b,
                                     float* c, int64_t c_step) {
  if constexpr (rows > 0) {
    if (count == rows) {
      sums<vectors>(std::make_integer_sequence<int, rows * vectors>{}, depth, a, a_step, b, c, c_step);
    } else {
      some<vectors, rows - 1>(count, depth, a, a_step, b, c, c_step);
    }
  }
}

// In as many equal parts as need be: a short rest would wait for its own sums.
template <int vectors, int rows>
FASTLRP_TARGET_AVX512_BF16 void panels(int64_t count, int64_t depth, const Bf16* a, int64_t a_step, const Bf16* b,
                                       float* c, int64_t c_step) {
  for (int64_t parts = (count + rows - 1) / rows; parts > 0; --parts) {
    const int64_t here = (count + parts - 1) / parts;
    some<vectors, rows>(here, depth, a, a_step, b, c, c_step);
    a += here * a_step, c += here * c_step, count -= here;
  }
}

FASTLRP_TARGET_AVX512_BF16 void products_avx512(int64_t rows, int64_t depth, int64_t columns, const Bf16* a,
                                                int64_t a_step, const Bf16* b, float* c, int64_t c_step) {
  // 6 x 4 sums and what they are made of fill 29 of 32 registers.
  for (int64_t left = columns / kPointPanel; left > 0;) {
    const int64_t here = left == 5 || left == 6 ? 3 : std::min<int64_t>(left, 4);
    switch (here) {
      case 4:
        panels<4, 6>(rows, depth, a, a_step, b, c, c_step);
        break;
      case 3:
        panels<3, 8>(rows, depth, a, a_step, b, c, c_step);
        break;
      case 2:
        panels<2, 12>(rows, depth, a, a_step, b, c, c_step);
        break;
      default:
        panels<1, 16>(rows, depth, a, a_step, b, c, c_step);
    }
    b += here * kPointPanel * depth, c += here * kPointPanel, left -= here;
  }
}

FASTLRP_TARGET_AVX512_BF16 inline __m512 wide(const float* from) { return _mm512_loadu_ps(from); }

FASTLRP_TARGET_AVX512_BF16 inline __m512 wide(const Bf16* from) {
  constexpr __mmask16 all = 0xffff;  // GCC warns of the other forms.
  const __m256i narrow = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return _mm512_castsi512_ps(_mm512_maskz_slli_epi32(all, _mm512_maskz_cvtepu16_epi32(all, narrow), 16));
}

// Numbers below 2^-126 become zero, as the products take them.
FASTLRP_TARGET_AVX512_BF16 inline void store(__m512 value, Bf16* to) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(value)));
}

FASTLRP_TARGET_AVX512_BF16 void rounded_avx512(int64_t count, const float* from, Bf16* to) {
  for (int64_t i = 0; i < count; i += kPointPanel) {
    store(wide(from + i), to + i);
  }
}

template <class From>
FASTLRP_TARGET_AVX512_BF16 void scaled_avx512(int64_t count, const From* from, const float* scale, Bf16* to) {
  for (int64_t i = 0; i < count; i += kPointPanel) {
    store(_mm512_mul_ps(wide(from + i), _mm512_loadu_ps(scale + i)), to + i);
  }
}
#endif

bool has_instructions() {
#if FASTLRP_X86_BF16
  return bf16_unit() == Bf16Unit::avx512_bf16;
#else
  return false;
#endif
}

}  // namespace

void point_products(int64_t rows, int64_t depth, int64_t columns, const Bf16* a, int64_t a_step, const Bf16* b,
                    float* c, int64_t c_step) {
#if FASTLRP_X86_BF16
  if (has_instructions()) {
    return products_avx512(rows, depth, columns, a, a_step, b, c, c_step);
  }
#endif
  run_best<ProductsSoftware>(rows, depth, columns, a, a_step, b, c, c_step);
}

void point_rounded(int64_t count, const float* from, Bf16* to) {
#if FASTLRP_X86_BF16
  if (has_instructions()) {
    return rounded_avx512(count, from, to);
  }
#endif
  run_best<Rounded>(count, from, to);
}

void point_rounded(int64_t count, const float* from, float* to) { std::copy_n(from, count, to); }

template <class From>
void point_scaled(int64_t count, const From* from, const float* scale, Bf16* to) {
#if FASTLRP_X86_BF16
  if (has_instructions()) {
    return scaled_avx512(count, from, scale, to);
  }
#endif
  run_best<RoundedProducts<From, Bf16>>(count, from, scale, to);
}

template <class From>
void point_scaled(int64_t count, const From* from, const float* scale, float* to) {
  run_best<RoundedProducts<From, float>>(count, from, scale, to);
}

template void point_scaled<float>(int64_t, const float*, const float*, Bf16*);
template void point_scaled<Bf16>(int64_t, const Bf16*, const float*, Bf16*);
template void point_scaled<float>(int64_t, const float*, const float*, float*);

}  // namespace fastlrp::cpu
