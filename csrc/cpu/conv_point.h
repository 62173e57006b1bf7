// Convolutions of one pixel, whose products of bfloat16 with sums in float32 are one pass with what is done to their
// operands before and to the sums after: two passes over memory in place of six or seven.
#pragma once

#include <cstdint>

#include "../common/bf16.h"
#include "../common/rule.h"

namespace fastlrp::cpu {

// Channels are counted in multiples of this many.
constexpr int64_t kPointLanes = 16;

// The maps of a convolution, with their channels innermost. Sizes of two axes are (rows, columns).
struct PointMaps {
  int64_t samples;
  int64_t size[2], out_size[2], stride[2];  // of its input and of its output: out_size = (size - 1) / stride + 1

  int64_t out_area() const { return out_size[0] * out_size[1]; }
};

// What a layer's sums P = W x + bias make of the outputs and what arrives (common/rule.h), for x and W without a
// negative entry: few digits of P are enough.
struct ConvPointSums {
  PointMaps maps;
  int64_t inputs, outputs;
  const float* x;      // (N, H, W, Ci)
  const Bf16* weight;  // from conv_point_pack
  const float* bias;   // null, or (Co)
  // zplus: v of alpha; gamma: u and v, of which negative sums are z - P; epsilon: u of z + alpha P.
  Rule rule;
  float alpha, epsilon;
  const float* z;       // (N, H', W', Co); read by epsilon and gamma
  const float* factor;  // null for 1, or as large
  float* u;             // as large; written by all but zplus
  float* v;             // written by all but epsilon
};

void conv_point_sums(const ConvPointSums& p);

// y = sum over parts of W_part^T (coefficient_part * relevance), for some targets of each sample. Entries of y that no
// output reads are zero.
template <class From>
struct ConvPointTransposed {
  PointMaps maps;
  int64_t targets, outputs, inputs, parts;
  const From* relevance;             // (N, targets, H', W', Co)
  const float* const* coefficients;  // (N, H', W', Co) each
  const Bf16* weight;                // from conv_point_pack, parts one behind the other
  Bf16* y;                           // (N, targets, H, W, Ci)
};

template <class From>
void conv_point_transposed(const ConvPointTransposed<From>& p);

// A matrix (depth, columns) as the kernels read it, both in multiples of kPointLanes, of element (d, c) at
// matrix[d * depth_step + c * column_step]. The rows of one product are `depth` of `all` that are summed up, from
// `first` on.
void conv_point_pack(int64_t depth, int64_t columns, const float* matrix, int64_t depth_step, int64_t column_step,
                     int64_t first, int64_t all, Bf16* packed);

}  // namespace fastlrp::cpu
