#pragma once

#include "device.h"
#include "sparse.h"

namespace fastlrp::cuda {

// A rule has one or two coefficients, and an input rule a fold for each of its products.
constexpr int kMaxProducts = 2, kMaxFolds = 4;

// c[q, ci] = initial[q, ci] + sum over products j, taps t, alive o at p(q, t) of
//            weight_j[t][o][ci] * coefficient_j[p, o] * arriving[p, o],   for the entries (q, ci) of `leaving`;
// weights are (groups, taps, Co/groups, Ci/groups), q and p are positions of the layer's input and output that tap t
// joins. All values are rows of `targets`. With scales_leaving the coefficients are coefficient_j[q, ci]: a layer's way
// up is this product with its input and output exchanged, and its coefficients stay with its output.
template <class T>
struct SparseConv {
  Window window;
  int64_t batch, targets;
  int32_t groups, out_channels, in_channels;  // channels per group
  Rows<T> arriving;
  Product<T> products[kMaxProducts];
  int32_t product_count;
  bool scales_leaving;
  bool tensor_cores;  // whether float may be rounded to tf32; other types have one way each
  Pattern leaving;
  int64_t leaving_entries;
  // Either compact, (leaving_entries, row_stride), aligned to 16 bytes with row_stride a multiple of kLanes; or, with
  // dense.data, the neurons' places in (B, K, C, *S), multiplied with `factor` (null data: 1), which needs
  // writes_dense(). What is not in `leaving` is not written.
  T* rows;
  int64_t row_stride;
  DenseMap<T> dense;
  Map<T> factor;
  Summand<T> initial;  // null values: none; for compact results
};

// Whether neurons can be written to a dense result one by one: those of several folds would have to be added up, and a
// layer with few channels per group leaves in another order.
template <class T>
bool writes_dense(const SparseConv<T>& p, int64_t channels);

template <class T>
void sparse_conv_relevance(const SparseConv<T>& p, Stream stream);

// dense[b, k, c, q] = sum over folds f of factor_f[b, c, q] * rows[entry (q, f * channels + c)][k], zero where the
// pattern has no such entry. Writes all of the result.
template <class T>
struct SparseFold {
  Rows<T> source;
  int32_t folds;
  Map<T> factors[kMaxFolds];
  bool has_factors;
  DenseMap<T> dense;
};

template <class T>
void sparse_conv_fold(const SparseFold<T>& p, Stream stream);

}  // namespace fastlrp::cuda
