#pragma once

#include "device.h"
#include "sparse.h"

// What moves rows between patterns and dense tensors. All that is written is written whole: columns behind the last
// target are zero.

namespace fastlrp::cuda {

// Rows that we make: (entries, stride), a stride of whole kLanes, aligned to 16 bytes.
template <class T>
struct NewRows {
  T* values;
  int64_t stride;
  int64_t entries;
  int64_t targets;
};

template <class T>
void sparse_from_dense(const DenseMap<const T>& dense, const Pattern& pattern, const NewRows<T>& to, Stream stream);

// Zero outside the pattern.
template <class T>
void sparse_to_dense(const Rows<T>& rows, const DenseMap<T>& dense, Stream stream);

// values[e] = sum over sources of factor * source's row for the same neuron, nothing where a source has none.
constexpr int kSources = 32;

template <class T>
struct Sum {
  Summand<T> sources[kSources];
  int count;
  Pattern pattern;
  int64_t spatial;  // positions of a sample
  NewRows<T> to;
  bool onto;  // added to what is there already, the sum of more sources
};
template <class T>
void sparse_sum(const Sum<T>& p, Stream stream);

// values[e] = sum over rows[starts[e] … starts[e + 1]) of the source's rows.
template <class T>
struct GatherSum {
  Rows<T> source;
  const int64_t* starts;  // (entries + 1)
  const int64_t* rows;
  NewRows<T> to;
};
template <class T>
void sparse_gather_sum(const GatherSum<T>& p, Stream stream);

}  // namespace fastlrp::cuda
