#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>
#include <vector>

#include "tensors.h"

// The shared-sparsity kernels on tensors: shapes are checked here, memory is allocated here. Patterns are made by
// sparse_pattern, sparse_winners and sparse_windows only, and their contents are trusted.

namespace fastlrp::edge {

using PatternTensors = std::tuple<at::Tensor, at::Tensor>;                          // offsets, channels
using RowTensors = std::tuple<at::Tensor, OptionalTensor, at::Tensor, at::Tensor>;  // values, rows, offsets, channels
using SummandTensors = std::tuple<at::Tensor, OptionalTensor, at::Tensor, at::Tensor, OptionalTensor>;  // …, factor

// Masks (B, C, *S), each with an index (B, C, *S) into its positions or none -> entries where any of them is not zero.
PatternTensors sparse_pattern(const std::vector<std::tuple<at::Tensor, OptionalTensor>>& masks);

// (B, K, C, *S) -> (entries, K rounded up).
at::Tensor sparse_from_dense(const at::Tensor& relevance, const PatternTensors& pattern);

// -> (B, K, *size) with size = (C, *S), C innermost in memory.
at::Tensor sparse_to_dense(const RowTensors& source, int64_t batch, int64_t targets, const std::vector<int64_t>& size);

at::Tensor sparse_sum(const std::vector<SummandTensors>& sources, const PatternTensors& pattern, int64_t batch,
                      int64_t targets);

using GatherTensors = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;  // offsets, channels, starts, rows

// index (B, C, *S') of winners, pattern of the pool's output -> pattern of its input, and the rows of each entry.
GatherTensors sparse_winners(const at::Tensor& index, const PatternTensors& pooled,
                             const std::vector<int64_t>& input_size, const std::vector<int64_t>& kernel_size,
                             const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                             const std::vector<int64_t>& dilation);

// The same for an average pool: of the wanted entries of its input those that are in the window of an output's entry.
// Without overlap starts are empty: each entry has one row.
GatherTensors sparse_windows(const PatternTensors& wanted, const PatternTensors& pooled, int64_t batch,
                             const std::vector<int64_t>& input_size, const std::vector<int64_t>& output_size,
                             const std::vector<int64_t>& kernel_size, const std::vector<int64_t>& stride,
                             const std::vector<int64_t>& padding);

at::Tensor sparse_gather_sum(const RowTensors& source, const at::Tensor& starts, const at::Tensor& rows,
                             int64_t targets);

// weight (groups, Co, Ci, taps), channels per group -> packed for sparse_conv_relevance; see cpu::Blocks.
at::Tensor sparse_pack(const at::Tensor& weight);

// coefficients (B, Co, *S') and packed weights, one of each per product. With `channels` the result is dense,
// (B, K, channels, *S), and `factors` (B, channels, *S) multiply its summands; else compact, where
// the sums begin with `initial` (at most one register). With `other` (B, Co, *S') each output neuron takes one of two
// weights: see cpu::SparseConv.
at::Tensor sparse_conv_relevance(const RowTensors& arriving, int64_t batch, int64_t targets,
                                 const std::vector<at::Tensor>& coefficients, const std::vector<at::Tensor>& weights,
                                 const std::vector<int64_t>& channels_per_group, const PatternTensors& leaving,
                                 const std::vector<int64_t>& input_size, const std::vector<int64_t>& output_size,
                                 const std::vector<int64_t>& kernel_size, const std::vector<int64_t>& stride,
                                 const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
                                 bool transposed, std::optional<int64_t> channels,
                                 const std::vector<at::Tensor>& factors, const std::vector<SummandTensors>& initial,
                                 const OptionalTensor& other);

}  // namespace fastlrp::edge
