// Patterns, rows, windows and masks that arrive as tensors, checked, for the kernels of any device.
#pragma once

#include "../common/sparse.h"
#include "maps.h"
#include "sparse.h"

namespace fastlrp::edge {

// More channels than a pattern can have whose layer does not say how many there are.
constexpr int64_t kMostChannels = int64_t{1} << 24;

inline int64_t times(int64_t count, int64_t each) { return product({count, each}); }

// For reading and writing; kernels say by const what they do.
template <class T>
T* memory_of(const Tensor& tensor) {
  return static_cast<T*>(const_cast<void*>(tensor.const_data_ptr()));
}

// A pattern on the device of `like`, each of whose channels is below `limit`. `name` is the argument's.
Pattern pattern_of(const Check& check, const char* name, const PatternTensors& tensors, const Tensor& like,
                   int64_t limit);

// Checks a register of at least `targets` columns in a pattern that was checked before, or with `limit` checks that
// too.
void check_rows(const Check& check, const char* name, const RowTensors& source, int64_t targets);

// The rows' view; both must outlive it.
template <class T>
Rows<T> rows_of(const RowTensors& source, const Pattern& pattern) {
  return {memory_of<const T>(source.values), source.values.stride(0),
          source.rows.has_value() ? memory_of<const int64_t>(*source.rows) : nullptr, pattern};
}

// Lists of rows for sparse_gather_sum, of a source with so many entries.
void check_lists(const Check& check, const Tensor& starts, const Tensor& rows, const Tensor& like, int64_t entries);

// The tensor must outlive the view.
template <class T>
Map<T> map_of(const Tensor& map) {
  return {memory_of<const T>(map), map.stride(0), map.stride(1), position_stride(map, 2)};
}
template <class T>
DenseMap<T> dense_of(const Tensor& map) {
  return {memory_of<T>(map), map.size(0),        map.size(1),
          map.size(2),       spatial_of(map, 3), map.stride(0),
          map.stride(1),     map.stride(2),      position_stride(map, 3)};
}

WindowOf<int64_t> window_of(const Check& check, const Geometry& geometry);

// Masks as they came, or copies that kernels can address.
struct Masks {
  std::vector<Tensor> maps, indices;  // indices: not defined where there is none
  Sizes size;
  int64_t spatial, positions;

  Masks(const Check& check, const std::vector<MaskTensors>& masks);

  template <class T>
  Mask<T> view(size_t number) const {
    const Tensor& index = indices[number];
    return {map_of<T>(maps[number]), index.defined() ? map_of<int64_t>(index) : Map<int64_t>{nullptr, 0, 0, 0},
            spatial_of(maps[number], 2)};
  }
};

// What a list of summands refers to, kept alive while the kernel runs, for a pattern of these positions whose channels
// are below `limit`.
struct Summands {
  std::vector<RowTensors> sources;
  std::vector<Pattern> patterns;
  std::vector<Tensor> factors;

  Summands(const Check& check, const std::vector<SummandTensors>& given, const Tensor& like, int64_t batch,
           int64_t targets, int64_t positions, int64_t limit);

  template <class T>
  std::vector<Summand<T>> views() const {
    std::vector<Summand<T>> result;
    for (size_t i = 0; i < sources.size(); ++i) {
      result.push_back({rows_of<T>(sources[i], patterns[i]),
                        factors[i].defined() ? map_of<T>(factors[i]) : Map<T>{nullptr, 0, 0, 0}});
    }
    return result;
  }
};

// The least size(1) of the summands' factors, or kMostChannels.
int64_t channels_of_factors(const Check& check, const std::vector<SummandTensors>& summands);

// The arguments of single operations.
struct DenseArguments {
  Tensor relevance;  // (B, K, C, *S)
  Pattern pattern;
  int64_t entries;

  DenseArguments(const Check& check, const Tensor& relevance, const PatternTensors& pattern);
};

struct ToDenseArguments {
  Pattern pattern;
  Sizes memory;  // (B, K, *S, C)

  ToDenseArguments(const Check& check, const RowTensors& source, int64_t batch, int64_t targets, const Sizes& size);
};

struct SumArguments {
  Pattern pattern;
  Summands summands;

  SumArguments(const Check& check, const std::vector<SummandTensors>& sources, const PatternTensors& pattern,
               int64_t batch, int64_t targets);
};

struct WinnersArguments {
  Tensor index;  // (B, C, *S')
  Pattern pooled;
  WindowOf<int64_t> window;

  WinnersArguments(const Check& check, const Tensor& index, const PatternTensors& pooled, const Geometry& geometry);
};

struct WindowsArguments {
  Pattern wanted, pooled;
  WindowOf<int64_t> window;

  WindowsArguments(const Check& check, const PatternTensors& wanted, const PatternTensors& pooled, int64_t batch,
                   const Geometry& geometry);
};

struct GatherArguments {
  Pattern pattern;
  int64_t lists;

  GatherArguments(const Check& check, const RowTensors& source, const Tensor& starts, const Tensor& rows,
                  int64_t targets);
};

void check_unpacked(const Check& check, const Tensor& weight);

}  // namespace fastlrp::edge
