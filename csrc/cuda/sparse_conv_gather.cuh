// What a tile of sparse_conv.cu sums up, found piece by piece in shared memory.
//
// A tile's columns are the alive channels of a run of neighbouring input positions. Its terms are the alive channels of
// all output positions (here: places) that a tap joins with any of them, so that positions side by side, whose windows
// overlap, read each row of values once. Each term has one weight row per position of the run, or none.
#pragma once

#include "../common/axis.h"
#include "block_scan.h"
#include "sparse_conv.h"
#include "sparse_conv_tile.cuh"

namespace fastlrp::cuda {

constexpr int kRun = 8;       // positions of a run: bits of a byte
constexpr int kPlaces = 128;  // places that are looked at together
constexpr int kByte = 8;      // terms that share a byte of Terms::live

// How the work is cut; divisors of the items' numbers.
struct Cut {
  int32_t run;           // positions side by side on the last axis
  int64_t items, first;  // blocks in all, number of this launch's first
  Divisor target_tiles, column_tiles, groups, runs, rows, planes;
};

template <class T>
struct Task {
  SparseConv<T> conv;
  Axis axes[3];  // of the layer: inputs and outputs exchanged if it is transposed
  Cut cut;
  bool aligned, initial_aligned;  // whether rows are read 16 bytes at a time
};

template <class N>
FASTLRP_HOST_DEVICE N smaller(N a, N b) {
  return b < a ? b : a;
}
template <class N>
FASTLRP_HOST_DEVICE N larger(N a, N b) {
  return a < b ? b : a;
}

// The output coordinate that a tap joins with input coordinate i, or -1.
template <class T>
__device__ __forceinline__ int32_t joined(const Task<T>& task, int axis, int32_t i, int32_t tap) {
  return task.conv.window.transposed ? task.axes[axis].input_at(i, tap) : task.axes[axis].output_at(i, tap);
}

// A run: `count` positions from (z, y, x) of a sample on, number `first` of all; one group of channels.
struct Run {
  int64_t batch, first;
  int32_t z, y, x, count, group;
};

// A place, and the tap that joins it with the run's position i: tap + shift + i * Candidates::step, if shift + i * step
// is a tap of the last axis.
struct Place {
  int64_t first;                 // its first entry
  int32_t position, tap, shift;  // tap: counted through all groups
};

struct Places {
  Place at[kPlaces];
  int32_t start[kPlaces + 1];  // of each place's terms
};

// What may be a place, in an order that keeps apart the positions of a run: the last axis outermost.
struct Candidates {
  int32_t count, rows, lowest, step;

  template <class T>
  __device__ void set(const Task<T>& task, const Run& run) {
    const Window& w = task.conv.window;
    const Axis& axis = task.axes[2];
    rows = w.taps[0] * w.taps[1];
    step = w.transposed ? -w.stride[2] : 1;
    if (task.cut.run == 1) {  // by taps
      lowest = step = 0;
      count = rows * w.taps[2];
      return;
    }
    // Dilation is 1.
    const int32_t end = run.x + run.count - 1;
    int64_t highest;
    if (w.transposed) {
      lowest = static_cast<int32_t>(larger(int64_t{0}, axis.start_of(run.x)));
      highest = axis.start_of(end) + w.taps[2] - 1;
    } else {
      const int64_t before = int64_t{run.x} + w.padding[2] - w.taps[2];
      lowest = before < 0 ? 0 : static_cast<int32_t>(axis.by_stride.divide(static_cast<uint32_t>(before))) + 1;
      highest = axis.by_stride.divide(static_cast<uint32_t>(end + w.padding[2]));
    }
    highest = smaller(highest, int64_t{w.out[2]} - 1);
    count = highest < lowest ? 0 : rows * static_cast<int32_t>(highest - lowest + 1);
  }

  // The place of a number below count; its entries in [place.first, end). False if there is none.
  template <class T>
  __device__ bool find(const Task<T>& task, const Run& run, int32_t number, Place& place, int64_t& end) const {
    const SparseConv<T>& p = task.conv;
    const Window& w = p.window;
    const int32_t column = number / rows, row = number % rows;
    const int32_t tz = row / w.taps[1], ty = row % w.taps[1];
    const int32_t z = joined(task, 0, run.z, tz), y = joined(task, 1, run.y, ty);
    int32_t x = lowest + column;
    if (task.cut.run == 1) {
      x = joined(task, 2, run.x, column);
      place.shift = column;
    } else {
      place.shift = w.transposed ? static_cast<int32_t>(x - task.axes[2].start_of(run.x))
                                 : static_cast<int32_t>(run.x - task.axes[2].start_of(x));
    }
    bool any = false;
    for (int32_t i = 0; i < run.count; ++i) {
      any |= static_cast<uint32_t>(place.shift + i * step) < static_cast<uint32_t>(w.taps[2]);
    }
    if (!any || z < 0 || y < 0 || x < 0) {
      return false;
    }
    place.tap = (run.group * rows + row) * w.taps[2];
    place.position = (z * w.out[1] + y) * w.out[2] + x;
    const Pattern& pattern = p.arriving.pattern;
    const int64_t* offsets = pattern.offsets + run.batch * (int64_t{w.out[0]} * w.out[1] * w.out[2]) + place.position;
    place.first = offsets[0], end = offsets[1];
    if (p.groups > 1) {
      const int32_t channel = run.group * p.out_channels;
      place.first = first_not_below(pattern.channels, place.first, end, channel);
      end = first_not_below(pattern.channels, place.first, end, channel + p.out_channels);
    }
    return true;
  }

  // Fills the places of numbers [begin, begin + kPlaces) and returns how many terms they have. For all threads, between
  // two barriers.
  template <class T>
  __device__ int32_t fill(const Task<T>& task, const Run& run, int32_t begin, Places& places) const {
    const int thread = threadIdx.x;
    if (thread < kPlaces) {
      int64_t end = 0;
      Place place{};
      const bool found = begin + thread < count && find(task, run, begin + thread, place, end);
      places.at[thread] = place;
      places.start[thread + 1] = found ? static_cast<int32_t>(end - place.first) : 0;
    }
    __syncthreads();
    if (thread < kWarp) {  // sums up to each place
      constexpr int kEach = kPlaces / kWarp;
      int32_t* mine = places.start + 1 + thread * kEach;
      int32_t sum = 0;
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        sum += mine[i];
        mine[i] = sum;
      }
      const int32_t before = warp_scan(sum, thread);
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        mine[i] += before;
      }
      if (thread == 0) {
        places.start[0] = 0;
      }
    }
    __syncthreads();
    return places.start[kPlaces];
  }
};

// A batch of terms as the tile reads them.
template <class T, int kBatch>
struct Terms {
  alignas(16) int64_t row[kBatch];  // where its values begin, or -1 behind the last term
  alignas(16) Accumulate<T> coefficient[kMaxProducts][kBatch];
  alignas(16) int32_t weight[kRun][kBatch];  // row of the weight, (groups, taps, Co), for each position, or -1
  uint8_t live[kBatch / kByte];              // positions for which any of 8 terms has a weight
};

// The term of this thread in the next batch, on its way from memory: each step waits for what the one before began to
// load, so they are put between products.
template <class T, int kBatch, int kProducts>
struct Ahead {
  int64_t entry, row;
  int32_t place, channel;
  Accumulate<T> coefficient[kProducts];

  static_assert(kBatch <= kThreads && kBatch % kWarp == 0);

  __device__ void locate(const Task<T>& task, const Places& places, int32_t term) {
    place = -1;
    if (threadIdx.x < kBatch && term < places.start[kPlaces]) {
      int32_t above = kPlaces;  // start[place] <= term < start[above]
      place = 0;
      while (above - place > 1) {
        const int32_t middle = (place + above) / 2;
        (places.start[middle] <= term ? place : above) = middle;
      }
      const Rows<T>& arriving = task.conv.arriving;
      entry = places.at[place].first + (term - places.start[place]);
      channel = arriving.pattern.channels[entry];
      row = arriving.rows == nullptr ? entry : arriving.rows[entry];
    }
  }

  __device__ void scale(const Task<T>& task, const Run& run, const Places& places) {
    if (place >= 0 && !task.conv.scales_leaving) {
#pragma unroll
      for (int j = 0; j < kProducts; ++j) {
        coefficient[j] = coefficient_of(task, run, places, j);
      }
    }
  }

  // `target`: the tile's first.
  __device__ void store(const Task<T>& task, const Run& run, int64_t target, const Places& places, int32_t step,
                        Terms<T, kBatch>& terms) const {
    const int thread = threadIdx.x;
    if (thread >= kBatch) {
      return;
    }
    const SparseConv<T>& p = task.conv;
    const bool here = place >= 0;
    terms.row[thread] = here ? row * p.arriving.stride + target : -1;
#pragma unroll
    for (int j = 0; j < kProducts; ++j) {
      terms.coefficient[j][thread] = here ? coefficient[j] : 0;
    }
    uint8_t live = 0;
    for (int i = 0; i < run.count; ++i) {
      const int32_t tap = here ? places.at[place].shift + i * step : -1;
      const bool joins = static_cast<uint32_t>(tap) < static_cast<uint32_t>(p.window.taps[2]);
      terms.weight[i][thread] =
          joins ? (places.at[place].tap + tap) * p.out_channels + channel - run.group * p.out_channels : -1;
      const unsigned joining = __ballot_sync(kAllLanes, joins) >> thread % kWarp / kByte * kByte;
      live |= static_cast<uint8_t>(((joining & 0xff) != 0) << i);
    }
    if (thread % kByte == 0) {
      terms.live[thread / kByte] = live;
    }
  }

 private:
  __device__ Accumulate<T> coefficient_of(const Task<T>& task, const Run& run, const Places& places, int j) const {
    return to_float(task.conv.products[j].coefficient.at(run.batch, channel, places.at[place].position));
  }
};

// This thread's share of the weights of one step: kEach neighbouring terms of one column. They are loaded a step ahead
// into registers and stored, multiplied with their coefficients and summed over the products, when the step before is
// done.
template <class T, class Math, class Tile, int kProducts>
struct Weights {
  static constexpr int kEach = Tile::kColumns * Tile::kDepth / kThreads;
  static constexpr int kRow = Tile::kDepth + kVector<T>;  // of shared memory
  static constexpr int kChunk = kVector<Accumulate<T>>;   // terms whose numbers are read from shared memory at once
  static_assert(kThreads % Tile::kColumns == 0 && Tile::kDepth % kEach == 0 && kEach % kVector<T> == 0);

  T loaded[kProducts][kEach];

  __device__ static int column() { return threadIdx.x % Tile::kColumns; }
  __device__ static int first() { return static_cast<int>(threadIdx.x) / Tile::kColumns * kEach; }

  // `rows`: the numbers of the weights' rows for the column's position, from the step's first term on; `channel`: the
  // column's in the group.
  __device__ void load(const SparseConv<T>& p, const int32_t* rows, int32_t channel) {
#pragma unroll
    for (int e = 0; e < kEach; e += kChunk) {
      const auto chunk = load_vector<int32_t, kChunk>(rows + first() + e);
#pragma unroll
      for (int i = 0; i < kChunk; ++i) {
        const int64_t at = channel + int64_t{chunk.at[i]} * p.in_channels;
#pragma unroll
        for (int j = 0; j < kProducts; ++j) {
          loaded[j][e + i] = chunk.at[i] >= 0 ? p.products[j].weight[at] : from_float<T>(0);
        }
      }
    }
  }

  // `term`: the step's first in its batch. `of_columns`: coefficients of the columns, or null for those of the terms.
  template <int kBatch>
  __device__ void store(const Terms<T, kBatch>& terms, int term, const Accumulate<T> (*of_columns)[Tile::kColumns],
                        typename Math::Element* to) const {
    using Sum = Accumulate<T>;
#pragma unroll
    for (int e = 0; e < kEach; e += kVector<T>) {
      Vector<typename Math::Element, kVector<T>> stored;
#pragma unroll
      for (int c = 0; c < kVector<T>; c += kChunk) {
        const int at = first() + e + c;
        Vector<Sum, kChunk> sum{};
#pragma unroll
        for (int j = 0; j < kProducts; ++j) {
          Vector<Sum, kChunk> coefficient;
          if (of_columns == nullptr) {
            coefficient = load_vector<Sum, kChunk>(terms.coefficient[j] + term + at);
          } else {
            const Sum of_column = of_columns[j][column()];
#pragma unroll
            for (int i = 0; i < kChunk; ++i) {
              coefficient.at[i] = of_column;
            }
          }
#pragma unroll
          for (int i = 0; i < kChunk; ++i) {
            sum.at[i] += coefficient.at[i] * to_float(loaded[j][e + c + i]);
          }
        }
#pragma unroll
        for (int i = 0; i < kChunk; ++i) {
          stored.at[c + i] = Math::element(sum.at[i]);
        }
      }
      store_vector<typename Math::Element, kVector<T>>(to + column() * kRow + first() + e, stored);
    }
  }
};

// sparse_conv_thin.cu: the same for layers with few channels per group.
template <class T>
void launch_thin(const Task<T>& task, Stream stream);

}  // namespace fastlrp::cuda
