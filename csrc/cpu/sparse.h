#pragma once

#include <cstdint>
#include <vector>

// Shared sparsity: for one sample all targets have the same dead neurons, so relevance is kept for alive ones only.
//
// A pattern lists the alive channels of every position in ascending order (offsets per position, then channels); a
// compact register holds one row of targets per entry of a pattern. The target axis is innermost and contiguous, so
// that an unstructured choice of neurons is still dense vector work.

namespace fastlrp::cpu {

// Columns of a row are padded to a multiple of this many targets.
constexpr int64_t kLanes = 16;

struct Pattern {
  const int64_t* offsets;   // (positions + 1), positions = B * spatial
  const int32_t* channels;  // (offsets[positions]), ascending within a position
  int64_t positions;
};

template <class T>
struct Rows {
  const T* values;      // (…, stride)
  int64_t stride;       // elements between rows
  const int64_t* rows;  // entry of the pattern -> row of values; null: the same
  Pattern pattern;

  const T* row(int64_t entry) const { return values + (rows == nullptr ? entry : rows[entry]) * stride; }
};

// A dense tensor (B, C, positions) by strides; null data: ones.
template <class T>
struct Map {
  const T* data;
  int64_t batch, channel, position;

  T at(int64_t b, int64_t c, int64_t p) const { return data[b * batch + c * channel + p * position]; }
};

// Leading axes of 1- and 2-dimensional layers are padded with ones.
struct Window {
  int64_t in[3], out[3], taps[3], stride[3], padding[3], dilation[3];
  bool transposed;
};

// How a weight is cut into blocks that stay in the first-level cache. A convolution's is packed as
// (groups, input blocks, taps, output blocks, block_out, block_in), zero where a block is not full; a linear layer's,
// of which each number is read once, stays as it is. The steps are elements between neighbours.
struct Blocks {
  int64_t groups, out_channels, in_channels;  // channels per group
  int64_t block_out, block_in;
  int64_t in_step, tap_step, out_step, row_step;

  int64_t out_blocks() const { return (out_channels + block_out - 1) / block_out; }
  int64_t in_blocks() const { return (in_channels + block_in - 1) / block_in; }
};

template <class T>
struct Product {
  const T* weight;     // packed, see Blocks
  Map<T> coefficient;  // u or v of the output neurons
};

// Rows, each to be multiplied with the factor of its neuron (null data: 1).
template <class T>
struct Summand {
  Rows<T> source;
  Map<T> factor;
};

// c[q, ci] = sum over products, taps t, alive co at p(q, t) of  weight[t][co][ci] * coefficient[p, co] * arriving[p,
// co], for the entries (q, ci) of `leaving`.
template <class T>
struct SparseConv {
  Window window;
  Blocks blocks;
  int64_t batch, targets;
  Rows<T> arriving;
  std::vector<Product<T>> products;
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
  const T* other_weight = nullptr;
  std::vector<Summand<T>> initial;  // at most one, compact results only: what the sums begin with
};

template <class T>
void sparse_conv_relevance(const SparseConv<T>& p);

// Values (B, C, positions), or, with an index of the same shape, the values at the positions that it names.
template <class T>
struct Mask {
  Map<T> map;
  Map<int64_t> index;  // null data: none
};

struct Entries {
  std::vector<int64_t> offsets;
  std::vector<int32_t> channels;
};

// The neurons at which any of the masks is not zero.
template <class T>
Entries sparse_pattern(const std::vector<Mask<T>>& masks, int64_t batch, int64_t channels, int64_t spatial);

// (B, K, C, positions) by strides <-> rows.
template <class T>
struct DenseMap {
  T* data;
  int64_t batch, targets, spatial, batch_stride, target_stride, channel_stride, position_stride;
};
template <class T>
void sparse_from_dense(const DenseMap<const T>& dense, const Pattern& pattern, T* values, int64_t stride);
template <class T>
void sparse_to_dense(const Rows<T>& rows, int64_t channels, const DenseMap<T>& dense);

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
// A max-pool: the outputs that an input won.
Gathered sparse_winners(const Map<int64_t>& index, const Pattern& pooled, const Window& window, int64_t batch);
// An average pool: the outputs in whose windows a wanted input is. Inputs without any are left out; starts are empty
// where windows don't overlap.
Gathered sparse_windows(const Pattern& wanted, const Pattern& pooled, const Window& window, int64_t batch);

// values[e] = sum over rows[starts[e] … starts[e + 1]) of the source's rows.
template <class T>
void sparse_gather_sum(const Rows<T>& source, const int64_t* starts, const int64_t* rows, int64_t entries,
                       int64_t targets, T* values, int64_t stride);

}  // namespace fastlrp::cpu
