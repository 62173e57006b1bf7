#pragma once

#include <tuple>
#include <vector>

#include "tensors.h"

// The shared-sparsity kernels on tensors: arguments are checked here, what patterns and rows hold included, and memory
// is allocated here.

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
// weights: see cpu::SparseConv. With `scales_leaving` the coefficients are (B, Ci, *S), those of the entries that
// leave.
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
  bool scales_leaving = false;
};

// Patterns, and moving relevance between dense tensors and rows, on one device; on a GPU for float16 and bfloat16 too.
// How many entries a new pattern has is read on the host, because the host allocates: on a GPU pattern and windows wait
// for the device once, winners and windows with overlap twice (entries and rows). What moves relevance never does,
// unless a pattern or rows come from elsewhere or were changed: these are looked at once (cuda/looked_at.h).
struct SparsePatternFunctions {
  // Masks (B, C, *S), each with an index (B, C, *S) into its positions or none -> entries where any of them is not
  // zero.
  PatternTensors (*pattern)(const std::vector<MaskTensors>& masks);

  // (B, K, C, *S) -> (entries, K rounded up).
  Tensor (*from_dense)(const Tensor& relevance, const PatternTensors& pattern);

  // -> (B, K, *size) with size = (C, *S), C innermost in memory.
  Tensor (*to_dense)(const RowTensors& source, int64_t batch, int64_t targets, const Sizes& size);

  Tensor (*sum)(const std::vector<SummandTensors>& sources, const PatternTensors& pattern, int64_t batch,
                int64_t targets);

  // index (B, C, *S') of winners, pattern of the pool's output -> pattern of its input, and the rows of each entry.
  GatherTensors (*winners)(const Tensor& index, const PatternTensors& pooled, const Sizes& input_size,
                           const Sizes& kernel_size, const Sizes& stride, const Sizes& padding, const Sizes& dilation);

  // The same for an average pool: of the wanted entries of its input those that are in the window of an output's entry.
  // Without overlap starts are empty: each entry has one row.
  GatherTensors (*windows)(const PatternTensors& wanted, const PatternTensors& pooled, int64_t batch,
                           const Sizes& input_size, const Sizes& output_size, const Sizes& kernel_size,
                           const Sizes& stride, const Sizes& padding);

  Tensor (*gather_sum)(const RowTensors& source, const Tensor& starts, const Tensor& rows, int64_t targets);
};

// The product of shared sparsity on one device. On a GPU float products are rounded to tf32 where PyTorch's switches
// allow it: torch.backends.cudnn's for convolutions, torch.backends.cuda.matmul's for linear layers.
struct SparseConvFunctions {
  // weight (groups, Co, Ci, taps), channels per group -> packed for `relevance`: on a CPU see cpu::Blocks, on a GPU
  // (groups, taps, Co, Ci).
  Tensor (*pack)(const Tensor& weight);

  // On a GPU at most two products and, with factors, four folds, and no `other`: all products of a rule are one there,
  // also with `scales_leaving`, which a CPU does not take.
  // A dense result (B, K, channels, *S) of a GPU has its channels innermost in memory.
  Tensor (*relevance)(const ConvCall& call);
};

extern const SparsePatternFunctions kSparsePattern;  // of the CPU
extern const SparseConvFunctions kSparseConv;

// Of the CPU alone: the packed weight in bfloat16, rounded to the nearest, as the unit in use wants it
// (common/bf16_unit.h); for linear layers too. Not for one channel per group. With it the products of `relevance` are
// of bfloat16: coefficient times relevance is rounded once, sums are of float32.
Tensor sparse_pack_pairs(const Tensor& weight);

namespace cuda {
extern const SparsePatternFunctions kSparsePattern;
extern const SparseConvFunctions kSparseConv;
}  // namespace cuda

}  // namespace fastlrp::edge
