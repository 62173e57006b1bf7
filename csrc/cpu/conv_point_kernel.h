// The inner products of conv_point, with sums in float32.
#pragma once

#include <cstdint>

#include "../common/bf16.h"

namespace fastlrp::cpu {

// Columns of packed weights that lie side by side, one panel with all its pairs behind the other.
constexpr int64_t kPointPanel = 16;

// c[row][column] = sum over k of a[row][k] b[k][column]: pair by pair of k, each as (sum + second) + first, whatever
// the rows and columns beside it. A product is rounded once, with the sum that it is added to; numbers below 2^-126
// count as zero. `b`: panels of (depth / 2, kPointPanel, 2). depth and columns: in multiples of kPointPanel.
void point_products(int64_t rows, int64_t depth, int64_t columns, const Bf16* a, int64_t a_step, const Bf16* b,
                    float* c, int64_t c_step);

// The same of float32, one k after the other; `b`: panels of (depth, kPointPanel).
void point_products(int64_t rows, int64_t depth, int64_t columns, const float* a, int64_t a_step, const float* b,
                    float* c, int64_t c_step);

// to[i] = from[i], and from[i] * scale[i], as they are or rounded, for i < count, a multiple of kPointPanel.
void point_rounded(int64_t count, const float* from, Bf16* to);
void point_rounded(int64_t count, const float* from, float* to);
template <class From>
void point_scaled(int64_t count, const From* from, const float* scale, Bf16* to);
template <class From>
void point_scaled(int64_t count, const From* from, const float* scale, float* to);

}  // namespace fastlrp::cpu
