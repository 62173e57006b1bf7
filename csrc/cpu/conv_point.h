// Convolutions of one pixel, whose products are one pass with what is done to their operands before and to the sums
// after: two passes over memory in place of six or seven. Products are of float32, or of bfloat16 with sums in float32.
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

// y = W x + bias, not below zero where asked for; what is not a number stays so.
struct ConvPoint {
  PointMaps maps;
  int64_t inputs, outputs;
  const float* x;       // (N, H, W, Ci)
  const float* weight;  // from conv_point_pack
  const float* bias;    // null, or (Co)
  bool not_negative;
  float* y;  // (N, H', W', Co)
};

void conv_point(const ConvPoint& p);

// What a layer's sums P = W x + bias make of the outputs and what arrives (common/rule.h), for x and W without a
// negative entry: few digits of P are enough. Products are of Number.
template <class Number>
struct ConvPointSums {
  PointMaps maps;
  int64_t inputs, outputs;
  const float* x;        // (N, H, W, Ci)
  const Number* weight;  // from conv_point_pack
  const float* bias;     // null, or (Co)
  // zplus: v of alpha; gamma: u and v, of which negative sums are z - P; epsilon: u of z + alpha P.
  Rule rule;
  float alpha, epsilon;
  const float* z;       // (N, H', W', Co); read by epsilon and gamma
  const float* factor;  // null for 1, or as large
  const float* times;   // null, or as large, beside a factor: what that is multiplied with
  float* u;             // as large; written by all but zplus
  float* v;             // written by all but epsilon
};

template <class Number>
void conv_point_sums(const ConvPointSums<Number>& p);

// y = sum over parts of W_part^T (coefficient_part * relevance), for some targets of each sample. Entries of y that no
// output reads are zero. Products are of Number, y is of To: the same, or float.
template <class From, class Number, class To>
struct ConvPointTransposed {
  PointMaps maps;
  int64_t targets, outputs, inputs, parts;
  const From* relevance;             // (N, targets, H', W', Co)
  const float* const* coefficients;  // (N, H', W', Co) each
  const Number* weight;              // from conv_point_pack, parts one behind the other
  To* y;                             // (N, targets, H, W, Ci)
};

template <class From, class Number, class To>
void conv_point_transposed(const ConvPointTransposed<From, Number, To>& p);

// The same where the input's sign chooses between two weights of each part: `above` zero, or `below` and for what is
// not a number; y is zero where the input is. Numbers of channels are any; those of the packed weights are whole lanes.
struct ConvPointChosen {
  PointMaps maps;
  int64_t targets, outputs, inputs, parts;
  const float* relevance;            // (N, targets, H', W', Co)
  const float* const* coefficients;  // (N, H', W', Co) each
  const float *above, *below;        // from conv_point_pack, parts one behind the other
  const float* sign;                 // (N, H, W, Ci)
  float* y;                          // (N, targets, H, W, Ci)
};

void conv_point_chosen(const ConvPointChosen& p);

// In whole lanes.
constexpr int64_t point_lanes(int64_t channels) { return (channels + kPointLanes - 1) / kPointLanes * kPointLanes; }

// A matrix (depth, columns) as the kernels read it, both in multiples of kPointLanes, of element (d, c) at
// matrix[d * depth_step + c * column_step]. The rows of one product are `depth` of `all` that are summed up, from
// `first` on.
template <class Number>
void conv_point_pack(int64_t depth, int64_t columns, const float* matrix, int64_t depth_step, int64_t column_step,
                     int64_t first, int64_t all, Number* packed);

}  // namespace fastlrp::cpu
