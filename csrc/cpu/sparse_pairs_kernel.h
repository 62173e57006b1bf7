// The inner product of the shared-sparsity path on bfloat16, with sums in float32, and the pass that prepares its rows.
#pragma once

#include <cstdint>

#include "../common/bf16.h"
#include "../common/bf16_unit.h"
#include "sparse_kernel.h"

namespace fastlrp::cpu {

// Rows of targets lie in pairs: (count / 2, width, 2), so that one target's two numbers are one operand of the
// instructions that multiply bfloat16. `count` is even: a row without a partner has one of zeros, and row[] repeats it.
//
// The order of a sum. By registers: pair by pair, each as (sum + second) + first. By tiles: 16 pairs at once, of which
// the first numbers and the second ones are added up apart, then both, then that to the sum. A product is rounded once,
// with the sum that it is added to; numbers below 2^-126 count as zero: as for the instructions. So both orders don't
// depend on width or left, and the two of one layout give the same bits with and without their instruction.
using MultiplyPairs = Multiply<float, Bf16>;

// to[e / 2][k][e % 2] = scale[e] * source[rows[e]][k], rounded to the nearest, for e < count, an even number, and k <
// valid; 0 up to width, and for a row of -1.
void scale_pairs(int64_t width, int64_t valid, int64_t count, const float* source, int64_t stride, const int64_t* rows,
                 const float* scale, Bf16* to);

struct PairsKernel {
  MultiplyPairs multiply_add;
  void (*begin)();  // in each thread, before and after it multiplies; null: nothing to do
  void (*end)();
};

// For the unit in use, by registers or by tiles: weights are laid out for one of them.
PairsKernel pairs_kernel(bool tiles);

}  // namespace fastlrp::cpu
