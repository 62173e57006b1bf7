// What a block of input_rules.cu computes, and for which columns: taps, terms and channels of the input. For that file
// alone.
#pragma once

#include "input_rules_parts.h"

namespace fastlrp::cuda {
namespace {

// One column of a chunk: where its weights are, and where its sums go.
template <class T>
struct Column {
  const T* weight;      // of output channel 0; null: there is no such column
  int32_t summed;       // channels that go into it
  int32_t slot;         // of the map
  bool fresh;           // first of its tap
  int64_t standing[3];  // of its tap: dilation * tap - padding
};

template <class T>
struct Job {
  InputRelevance<T> p;
  Tile tile;
  int64_t blocks;
  int32_t slots;  // of the map
  int32_t first_slot[kMostTerms];
  int32_t columns_of[kMostTerms];  // of a tap, for each coefficient
  int32_t taps, channels_at_once;
};

// What a term takes of the map: channels that nothing multiplies before they are added up are one.
template <class T>
FASTLRP_HOST_DEVICE int32_t slots_of(const InputRelevance<T>& p, int term) {
  return p.reduce && p.multipliers[term] == nullptr ? 1 : static_cast<int32_t>(p.Ci);
}

// Place number n of a box with these sizes.
struct Place {
  int32_t at[3];
  __device__ __forceinline__ Place(int32_t n, int32_t size_y, int32_t size_x) {
    const int32_t row = n / size_x;
    at[2] = n - row * size_x;
    at[0] = row / size_y;
    at[1] = row - at[0] * size_y;
  }
};

// The outputs that stand on inputs of a block.
struct Reach {
  int32_t first[3], count[3], total;
};

__device__ __forceinline__ Reach reach_of(const Axis* axes, const int32_t* origin, const int32_t* size) {
  Reach reach;
  reach.total = 1;
  for (int a = 0; a < 3; ++a) {
    const Axis& axis = axes[a];
    const int64_t from = int64_t{origin[a]} + axis.padding, behind = int64_t{axis.taps - 1} * axis.dilation;
    const int64_t least = from - behind, most = from + size[a] - 1;
    const int64_t first = least <= 0 ? 0 : (least + axis.stride - 1) / axis.stride;
    const int64_t last = most / axis.stride < axis.outputs ? most / axis.stride : axis.outputs - 1;
    reach.first[a] = static_cast<int32_t>(first < last ? first : last);
    reach.count[a] = static_cast<int32_t>(first <= last ? last - first + 1 : 0);
    reach.total *= reach.count[a];
  }
  return reach;
}

template <class T>
__device__ __forceinline__ Column<T> column_of(const Job<T>& job, int coefficient, int32_t column, int32_t in_chunk) {
  const InputRelevance<T>& p = job.p;
  const int32_t each = job.columns_of[coefficient], tap = column / each;
  Column<T> made{};
  if (tap >= job.taps) {
    return made;
  }
  int32_t channel = column - tap * each;
  made.fresh = in_chunk == 0 || channel == 0;
  int term = 0;
  while (p.coefficient_of[term] != coefficient || channel >= slots_of(p, term)) {
    channel -= p.coefficient_of[term] == coefficient ? slots_of(p, term) : 0;
    ++term;
  }
  made.weight = p.weights[term] + int64_t{channel} * job.taps + tap;
  made.summed = slots_of(p, term) == p.Ci ? 1 : static_cast<int32_t>(p.Ci);
  made.slot = job.first_slot[term] + channel;
  const Place place(tap, p.axes[1].taps, p.axes[2].taps);
  for (int a = 0; a < 3; ++a) {
    made.standing[a] = int64_t{place.at[a]} * p.axes[a].dilation - p.axes[a].padding;
  }
  return made;
}

// weights[o * N + c] for `count` output channels from `first` on.
template <class T, int N>
__device__ __forceinline__ void stage(const Job<T>& job, const Column<T>* columns, int64_t first, int32_t count,
                                      Accumulate<T>* weights) {
  const int64_t each = job.p.Ci * job.taps;
  FASTLRP_ROLLED
  for (int32_t i = threadIdx.x; i < count * N; i += blockDim.x) {
    const int32_t o = i / N;
    const Column<T>& column = columns[i - o * N];
    Accumulate<T> sum = 0;
    if (column.weight != nullptr) {
      const T* weight = column.weight + (first + o) * each;
      FASTLRP_ROLLED
      for (int32_t channel = 0; channel < column.summed; ++channel) {
        sum += to_float(weight[int64_t{channel} * job.taps]);
      }
    }
    weights[i] = sum;
  }
}

}  // namespace
}  // namespace fastlrp::cuda
