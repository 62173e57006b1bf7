#pragma once

#include <tuple>
#include <vector>

#include "tensors.h"

// The shared-sparsity kernels on tensors: arguments are checked here, what patterns and rows hold included, and memory
// is allocated here. edge/cuda/sparse_pattern.h and sparse_conv.h have the same functions for a GPU.

namespace fastlrp::edge {

struct PatternTensors {
  Tensor offsets, channels;

  auto tuple() const { return std::tuple{offsets, channels}; }
};

struct RowTensors {
  Tensor values;
  OptionalTensor rows;  // of each entry; none: the same order
  Tensor offsets, channels;

  auto tuple() const { return std::tuple{values, rows, offsets, channels}; }
};

struct SummandTensors {
  Tensor values;
  OptionalTensor rows;
  Tensor offsets, channels;
  OptionalTensor factor;  // (B, C, *S)

  auto tuple() const { return std::tuple{values, rows, offsets, channels, factor}; }
};

// The pattern of a pool's input and the rows that each entry takes; starts are empty where each has one.
struct GatherTensors {
  Tensor offsets, channels, starts, rows;

  auto tuple() const { return std::tuple{offsets, channels, starts, rows}; }
};

// (B, C, *S), or the values that an index (B, C, *S') names.
struct MaskTensors {
  Tensor values;
  OptionalTensor index;

  auto tuple() const { return std::tuple{values, index}; }
};

// One number per spatial axis of a layer.
struct Geometry {
  Sizes input_size, output_size, kernel_size, stride, padding, dilation;
  bool transposed = false;
};

// Coefficients (B, Co, *S') and packed weights, one of each per product. With `channels` the result is dense,
// (B, K, channels, *S), and `factors` (B, channels, *S) multiply its summands; else compact, where
// the sums begin with `initial` (at most one register). With `other` (B, Co, *S') each output neuron takes one of two
// weights: see cpu::SparseConv.
struct ConvCall {
  RowTensors arriving;
  int64_t batch, targets;
  std::vector<Tensor> coefficients, weights;
  Sizes channels_per_group;  // of the output, of the input
  PatternTensors leaving;
  Geometry geometry;
  std::optional<int64_t> channels;
  std::vector<Tensor> factors;
  std::vector<SummandTensors> initial;
  OptionalTensor other;
};

// Masks (B, C, *S), each with an index (B, C, *S) into its positions or none -> entries where any of them is not zero.
PatternTensors sparse_pattern(const std::vector<MaskTensors>& masks);

// (B, K, C, *S) -> (entries, K rounded up).
Tensor sparse_from_dense(const Tensor& relevance, const PatternTensors& pattern);

// -> (B, K, *size) with size = (C, *S), C innermost in memory.
Tensor sparse_to_dense(const RowTensors& source, int64_t batch, int64_t targets, const Sizes& size);

Tensor sparse_sum(const std::vector<SummandTensors>& sources, const PatternTensors& pattern, int64_t batch,
                  int64_t targets);

// index (B, C, *S') of winners, pattern of the pool's output -> pattern of its input, and the rows of each entry.
GatherTensors sparse_winners(const Tensor& index, const PatternTensors& pooled, const Sizes& input_size,
                             const Sizes& kernel_size, const Sizes& stride, const Sizes& padding,
                             const Sizes& dilation);

// The same for an average pool: of the wanted entries of its input those that are in the window of an output's entry.
// Without overlap starts are empty: each entry has one row.
GatherTensors sparse_windows(const PatternTensors& wanted, const PatternTensors& pooled, int64_t batch,
                             const Sizes& input_size, const Sizes& output_size, const Sizes& kernel_size,
                             const Sizes& stride, const Sizes& padding);

Tensor sparse_gather_sum(const RowTensors& source, const Tensor& starts, const Tensor& rows, int64_t targets);

// weight (groups, Co, Ci, taps), channels per group -> packed for sparse_conv_relevance; see cpu::Blocks.
Tensor sparse_pack(const Tensor& weight);

// The same in bfloat16, rounded to the nearest, as the unit in use wants it (common/bf16_unit.h); for linear layers too.
// Not for one channel per group.
Tensor sparse_pack_pairs(const Tensor& weight);

// With weights of sparse_pack_pairs the products are of bfloat16: coefficient times relevance is rounded once, sums are
// of float32.
Tensor sparse_conv_relevance(const ConvCall& call);

}  // namespace fastlrp::edge
