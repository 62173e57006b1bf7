#pragma once

#include <cstdint>
#include <vector>

#include "../common/bf16.h"
#include "../common/sparse.h"

// What shared sparsity is, and the structs that the GPU's kernels take too, are in common/sparse.h.

namespace fastlrp::cpu {

using fastlrp::DenseMap;
using fastlrp::kLanes;
using fastlrp::Map;
using fastlrp::Mask;
using fastlrp::Pattern;
using fastlrp::Rows;
using fastlrp::Summand;
using Window = WindowOf<int64_t>;

// How a weight is cut into blocks that stay in the first-level cache. A convolution's is packed as
// (groups, input blocks, taps, output blocks, block_out, block_in), zero where a block is not full; a linear layer's,
// of which each number is read once, stays as it is, its rows or (on the way up) its columns side by side. Tiles of
// bfloat16 have (…, block_in, block_out) instead. The steps are elements between neighbours.
struct Blocks {
  int64_t groups, out_channels, in_channels;  // channels per group
  int64_t block_out, block_in;
  int64_t in_step, tap_step, out_step, row_step, column_step = 1;
  bool has_tiles = false;

  int64_t out_blocks() const { return (out_channels + block_out - 1) / block_out; }
  int64_t in_blocks() const { return (in_channels + block_in - 1) / block_in; }
};

// c[q, ci] = sum over products, taps t, alive co at p(q, t) of  weight[t][co][ci] * coefficient[p, co] * arriving[p,
// co], for the entries (q, ci) of `leaving`. `Number`: T, or Bf16 for T = float: what products read; sums are of T.
template <class T, class Number = T>
struct SparseConv {
  struct Product {
    const Number* weight;
    Map<T> coefficient;  // (B, Co, *S'): u or v of the output neurons
  };

  Window window;
  Blocks blocks;
  int64_t batch, targets;
  Rows<T> arriving;
  std::vector<Product> products;
  Pattern leaving;
  // Either compact, (entries of leaving, result_stride); or dense, (B, K, channels, positions) by strides, where
  // entries whose channels are equal modulo `channels` are added up, each multiplied with factors[channel / channels].
  T* result;
  int64_t result_stride;
  bool dense;
  int64_t channels, dense_batch, dense_target, dense_channel, dense_position;
  std::vector<Map<T>> factors;
  // With data, an output neuron whose coefficient u and `other` have opposite signs takes other_weight times their sum
  // instead of the only product's weight times u: gamma needs one product even where outputs have both signs.
  Map<T> other{nullptr, 0, 0, 0};
  const Number* other_weight = nullptr;
  std::vector<Summand<T>> initial;  // at most one, compact results only: what the sums begin with
};

// Not for one channel per group with Number = Bf16: there is no pair to multiply.
template <class T, class Number>
void sparse_conv_relevance(const SparseConv<T, Number>& p);

struct Entries {
  std::vector<int64_t> offsets;
  std::vector<int32_t> channels;
};

// The neurons at which any of the masks is not zero. Throws std::out_of_range for an index outside its mask's places.
template <class T>
Entries sparse_pattern(const std::vector<Mask<T>>& masks, int64_t batch, int64_t channels, int64_t spatial);

// (B, K, C, positions) by strides <-> rows.
template <class T>
void sparse_from_dense(const DenseMap<const T>& dense, const Pattern& pattern, T* values, int64_t stride);
template <class T>
void sparse_to_dense(const Rows<T>& rows, const DenseMap<T>& dense);

// values[e] = sum over sources of factor * source's row for the same neuron, nothing where a source has none.
template <class T>
void sparse_sum(const std::vector<Summand<T>>& sources, const Pattern& pattern, int64_t batch, int64_t targets,
                T* values, int64_t stride);

// The pattern of a pool's input, each entry with the rows of the outputs that it takes from, ascending.
struct Gathered {
  Entries entries;
  std::vector<int64_t> starts, rows;  // starts: (entries + 1) into rows; empty if each entry has one
  bool everything = false;            // then the entries are those that were wanted, and not written down again
};
// A max-pool: the outputs that an input won; one whose index is not in its window is nobody's.
Gathered sparse_winners(const Map<int64_t>& index, const Pattern& pooled, const Window& window, int64_t batch);
// An average pool: the outputs in whose windows a wanted input is. Inputs without any are left out; starts are empty
// where windows don't overlap.
Gathered sparse_windows(const Pattern& wanted, const Pattern& pooled, const Window& window, int64_t batch);

// values[e] = sum over rows[starts[e] … starts[e + 1]) of the source's rows, 0 where there are none.
template <class T>
void sparse_gather_sum(const Rows<T>& source, const int64_t* starts, const int64_t* rows, int64_t entries,
                       int64_t targets, T* values, int64_t stride);

}  // namespace fastlrp::cpu
