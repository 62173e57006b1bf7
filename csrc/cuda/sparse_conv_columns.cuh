// Which results one block of sparse_conv.cu computes, what it has in shared memory, and how results are written.
#pragma once

#include "sparse_conv_gather.cuh"

namespace fastlrp::cuda {

constexpr int kStages = 3;  // of values

// One column of a tile: where its result begins, where what it begins with does (-1: nothing) and the factor of that
// or of a dense result.
template <class T, int kColumns>
struct Columns {
  int64_t out[kColumns], initial[kColumns];
  Accumulate<T> factor[kColumns];
  Accumulate<T> coefficient[kMaxProducts][kColumns];  // with scales_leaving
  int32_t channel[kColumns];                          // within the group
  int32_t position[kColumns];                         // of the run
};

// What one block computes; in shared memory, so that it takes no registers.
struct Work {
  Run run;
  Candidates candidates;
  int32_t tile;     // number among the run's tiles of columns
  int32_t targets;  // of this tile
  int64_t target;   // the first

  template <class T>
  __device__ void set(const Task<T>& task, int64_t item, int tile_targets) {
    const Window& w = task.conv.window;
    const auto next = [&](const Divisor& by) {
      const uint64_t rest = by.divide_wide(static_cast<uint64_t>(item));
      const auto number = static_cast<int32_t>(item - static_cast<int64_t>(rest * by.value));
      item = static_cast<int64_t>(rest);
      return number;
    };
    target = int64_t{next(task.cut.target_tiles)} * tile_targets;
    targets = static_cast<int32_t>(smaller(int64_t{tile_targets}, task.conv.targets - target));
    tile = next(task.cut.column_tiles);
    run.group = next(task.cut.groups);
    run.x = next(task.cut.runs) * task.cut.run;
    run.count = smaller(task.cut.run, w.in[2] - run.x);
    run.y = next(task.cut.rows);
    run.z = next(task.cut.planes);
    run.batch = item;
    run.first = ((run.batch * w.in[0] + run.z) * w.in[1] + run.y) * w.in[2] + run.x;
    candidates.set(task, run);
  }
};

template <class Math_, class Tile_>
struct Shape {
  using Math = Math_;
  using Tile = Tile_;
  using T = typename Math::Value;
  using Element = typename Math::Element;
  using Sum = Accumulate<T>;
  static constexpr int kBatch = Tile::kDepth <= 32 ? 128 : 256;
  static constexpr int kSteps = kBatch / Tile::kDepth;  // in a batch
  static constexpr int kValueRow = Tile::kTargets + Math::kValuePad, kWeightRow = Tile::kDepth + kVector<T>;
  static constexpr int kSumRow = Tile::kTargets + kVector<Sum>;
  static constexpr int kPass = Tile::kColumns < 64 ? Tile::kColumns : 64;  // columns that are written at once
  static_assert(kSteps >= 4 && Tile::kDepth % Math::kStep == 0);

  struct Operands {
    alignas(16) T values[kStages][Tile::kDepth * kValueRow];
    alignas(16) Element weights[2][Tile::kColumns * kWeightRow];
  };
  struct Shared {
    // Sums are written when all products are done.
    static constexpr size_t kSumBytes = sizeof(Sum) * kPass * kSumRow;
    alignas(16) unsigned char memory[sizeof(Operands) > kSumBytes ? sizeof(Operands) : kSumBytes];
    Terms<T, kBatch> terms[2];
    Work work;
    Places places;
    Columns<T, Tile::kColumns> columns;
    int64_t first[kRun];       // the run's entries, position by position
    int32_t before[kRun + 1];  // columns of earlier positions

    __device__ Operands& operands() { return *reinterpret_cast<Operands*>(memory); }
    __device__ Sum* sums() { return reinterpret_cast<Sum*>(memory); }
  };
};

// Finds the columns of this block and returns how many; 0 if the run has fewer tiles. For all threads.
template <class S, class T = typename S::T>
__device__ int32_t find_columns(const Task<T>& task, typename S::Shared& shared) {
  const SparseConv<T>& p = task.conv;
  const Run& run = shared.work.run;
  const Pattern& leaving = p.leaving;
  const int thread = threadIdx.x;
  if (thread < kRun) {
    int64_t begin = 0, end = 0;
    if (thread < run.count) {
      const int64_t q = run.first + thread;
      begin = leaving.offsets[q], end = leaving.offsets[q + 1];
      if (p.groups > 1) {
        const int32_t channel = run.group * p.in_channels;
        begin = first_not_below(leaving.channels, begin, end, channel);
        end = first_not_below(leaving.channels, begin, end, channel + p.in_channels);
      }
    }
    shared.first[thread] = begin;
    shared.before[thread + 1] = static_cast<int32_t>(end - begin);
  }
  __syncthreads();
  int32_t total = 0, before[kRun + 1];
  before[0] = 0;
#pragma unroll
  for (int i = 0; i < kRun; ++i) {
    total += shared.before[i + 1];
    before[i + 1] = total;
  }
  __syncthreads();
  // Tiles of a run share its columns evenly, in whole groups.
  const int32_t tiles = (total + S::Tile::kColumns - 1) / S::Tile::kColumns;
  const int32_t tile = shared.work.tile;
  if (tile >= tiles) {
    return 0;
  }
  const int32_t each = ((total + tiles - 1) / tiles + kGroup - 1) / kGroup * kGroup;
  const int32_t count = smaller(each, total - tile * each);
  if (thread < count) {
    const int32_t column = tile * each + thread;
    int32_t position = 0;
#pragma unroll
    for (int i = 1; i < kRun; ++i) {
      position += before[i] <= column;
    }
    int32_t skipped = 0;
#pragma unroll
    for (int i = 1; i < kRun; ++i) {
      skipped = before[i] <= column ? before[i] : skipped;
    }
    const int64_t entry = shared.first[position] + column - skipped, q = run.first + position;
    const int32_t channel = leaving.channels[entry];
    const int64_t inside = q - run.batch * (int64_t{p.window.in[0]} * p.window.in[1] * p.window.in[2]);
    Accumulate<T> factor = 1;
    int64_t out = entry * p.row_stride, initial = -1;
    if (p.dense.data != nullptr) {
      const DenseMap<T>& to = p.dense;
      out = run.batch * to.batch_stride + channel * to.channel_stride + inside * to.position_stride;
      factor = p.factor.data == nullptr ? factor : to_float(p.factor.at(run.batch, channel, inside));
    } else if (p.initial.source.values != nullptr) {
      const Rows<T>& source = p.initial.source;
      const int64_t begin = source.pattern.offsets[q], end = source.pattern.offsets[q + 1];
      const int64_t found = entry_of(source.pattern.channels, begin, end, channel);
      if (found >= 0) {
        initial = (source.rows == nullptr ? found : source.rows[found]) * source.stride;
        factor = p.initial.factor.data == nullptr ? factor : to_float(p.initial.factor.at(run.batch, channel, inside));
      }
    }
    shared.columns.out[thread] = out;
    shared.columns.initial[thread] = initial;
    shared.columns.factor[thread] = factor;
    if (p.scales_leaving) {
      for (int j = 0; j < p.product_count; ++j) {
        shared.columns.coefficient[j][thread] = to_float(p.products[j].coefficient.at(run.batch, channel, inside));
      }
    }
    shared.columns.channel[thread] = channel - run.group * p.in_channels;
    shared.columns.position[thread] = position;
  }
  __syncthreads();
  return count;
}

// Sums of kPass columns, which lie in shared memory, to the result.
template <class S, class T = typename S::T>
__device__ void write(const Task<T>& task, int32_t columns, int pass, typename S::Shared& shared) {
  using Sum = typename S::Sum;
  constexpr int kTargets = S::Tile::kTargets, kV = kVector<T>;
  const SparseConv<T>& p = task.conv;
  const int begin = pass * S::kPass, count = smaller(S::kPass, columns - begin);
  const int targets = shared.work.targets;
  const int64_t first_target = shared.work.target;
  const Sum* sums = shared.sums();
  if (p.dense.data != nullptr) {
    // Lanes side by side have channels side by side, the innermost axis of what they write.
    constexpr int kEach = kVector<Sum>;
    for (int i = threadIdx.x; i < S::kPass * (kTargets / kEach); i += kThreads) {
      const int column = i % S::kPass, target = i / S::kPass * kEach;
      if (column < count && target < targets) {
        const auto from = load_vector<Sum, kEach>(sums + column * S::kSumRow + target);
        T* to = p.dense.data + shared.columns.out[begin + column] + (first_target + target) * p.dense.target_stride;
        const Sum factor = shared.columns.factor[begin + column];
#pragma unroll
        for (int k = 0; k < kEach; ++k) {
          if (target + k < targets) {
            to[k * p.dense.target_stride] = from_float<T>(factor * from.at[k]);
          }
        }
      }
    }
    return;
  }
  for (int i = threadIdx.x; i < S::kPass * (kTargets / kV); i += kThreads) {
    const int column = i / (kTargets / kV), target = i % (kTargets / kV) * kV;
    if (column >= count || target >= targets) {
      continue;
    }
    Sum sum[kV];
#pragma unroll
    for (int k = 0; k < kV; k += kVector<Sum>) {
      const auto from = load_vector<Sum, kVector<Sum>>(sums + column * S::kSumRow + target + k);
#pragma unroll
      for (int j = 0; j < kVector<Sum>; ++j) {
        sum[k + j] = from.at[j];
      }
    }
    const int64_t initial = shared.columns.initial[begin + column];
    if (initial >= 0) {
      const Sum factor = shared.columns.factor[begin + column];
      const T* from = p.initial.source.values + initial + first_target + target;
      Vector<T, kV> theirs{};
      if (task.initial_aligned && target + kV <= targets) {
        theirs = load_vector<T, kV>(from);
      } else {
#pragma unroll
        for (int k = 0; k < kV; ++k) {
          theirs.at[k] = target + k < targets ? from[k] : from_float<T>(0);
        }
      }
#pragma unroll
      for (int k = 0; k < kV; ++k) {
        sum[k] += factor * to_float(theirs.at[k]);
      }
    }
    Vector<T, kV> result;
#pragma unroll
    for (int k = 0; k < kV; ++k) {
      result.at[k] = from_float<T>(sum[k]);
    }
    store_vector<T, kV>(p.rows + shared.columns.out[begin + column] + first_target + target, result);
  }
}

}  // namespace fastlrp::cuda
