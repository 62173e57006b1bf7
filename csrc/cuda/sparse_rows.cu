// Rows of targets: from and to dense tensors, sums of rows.
//
// Between a row, targets innermost, and a dense tensor, targets outermost, lies a transpose: each warp has a tile of 32
// neurons times 32 targets in shared memory, with a pitch that keeps columns and rows in different banks. On the dense
// side lanes are 32 neurons that are neighbours in memory (entries of the pattern where channels are innermost,
// positions of one channel where these are); on the side of rows each lane moves 16 bytes of one. Sums move whole rows
// 16 bytes at a time; where each comes from is looked up once per row, not once per vector.

#include "../common/pattern.h"
#include "sparse_rows.h"

namespace fastlrp::cuda {
namespace {

constexpr int kTileThreads = 128, kTileWarps = kTileThreads / kWarp, kTile = 32;
constexpr int kThreads = 256;
constexpr int kRows = 32;                // per block of a sum
constexpr int64_t kEnoughBlocks = 2048;  // beyond it targets need not be divided among blocks

template <class T>
constexpr int kPitch = kTile + (sizeof(T) < 4 ? 4 / static_cast<int>(sizeof(T)) : 1);

template <class T>
constexpr size_t kTileBytes = kTile * kPitch<T> * sizeof(T) * kTileWarps;

template <class T>
__device__ __forceinline__ T zero() {
  return from_float<T>(0);
}

// V values, zero behind the first `valid`.
template <class T, int V>
__device__ __forceinline__ Vector<T, V> load_columns(const T* from, int64_t valid) {
  if (valid >= V) {
    return load_vector<T, V>(from);
  }
  Vector<T, V> x;
  for (int i = 0; i < V; ++i) {
    x.at[i] = i < valid ? from[i] : zero<T>();
  }
  return x;
}

// values[at] … of aligned rows, `at` a multiple of V. Counted in vectors: inside the loop over targets the compiler
// would otherwise forget the alignment and store them number by number.
template <class T, int V>
__device__ __forceinline__ void store_columns(T* values, int64_t at, const Vector<T, V>& x) {
  check_aligned<Vector<T, V>>(values + at);
  reinterpret_cast<Vector<T, V>*>(values)[static_cast<uint64_t>(at) / V] = x;
}

// f(neuron, target) for the vectors of a tile that this lane moves.
template <int V, class Body>
__device__ __forceinline__ void over_tile(int lane, Body&& body) {
  constexpr int each = kTile / V;  // vectors of a row
  for (int first = 0; first < kTile; first += kWarp / each) {
    body(first + lane / each, lane % each * V);
  }
}

template <class T>
__device__ __forceinline__ int64_t address(const DenseMap<T>& dense, int64_t position, int64_t channel) {
  return position / dense.spatial * dense.batch_stride + position % dense.spatial * dense.position_stride +
         channel * dense.channel_stride;
}

template <class T, bool by_position>
__global__ void __launch_bounds__(kTileThreads)
    from_dense_kernel(const __grid_constant__ DenseMap<const T> dense, const Pattern pattern, const NewRows<T> to) {
  constexpr int V = kVector<T>;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  T* tile = dynamic_shared<T>() + warp * kTile * kPitch<T>;  // (targets, neurons)
  const int64_t cells = by_position ? pattern.positions : to.entries;
  const int64_t items = (cells + kTile - 1) / kTile * (by_position ? dense.channels : 1);
  for (int64_t item = int64_t{blockIdx.x} * kTileWarps + warp; item < items; item += int64_t{gridDim.x} * kTileWarps) {
    int64_t position = 0, entry = -1;
    int32_t channel = 0;
    if constexpr (by_position) {
      position = item / dense.channels * kTile + lane;
      channel = static_cast<int32_t>(item % dense.channels);
      if (position < pattern.positions) {
        entry = entry_of(pattern.channels, pattern.offsets[position], pattern.offsets[position + 1], channel);
      }
    } else if (item * kTile + lane < to.entries) {
      entry = item * kTile + lane;
      position = position_of(pattern.offsets, pattern.positions, entry);
      channel = pattern.channels[entry];
    }
    if (!__any_sync(kAllLanes, entry >= 0)) {
      continue;
    }
    const T* from = dense.data + (entry >= 0 ? address(dense, position, channel) : 0);
    for (int64_t k = int64_t{blockIdx.y} * kTile; k < to.stride; k += int64_t{gridDim.y} * kTile) {
#pragma unroll 8
      for (int i = 0; i < kTile; ++i) {
        tile[i * kPitch<T> + lane] =
            entry >= 0 && k + i < dense.targets ? from[(k + i) * dense.target_stride] : zero<T>();
      }
      __syncwarp();
      over_tile<V>(lane, [&](int neuron, int target) {
        const int64_t row = __shfl_sync(kAllLanes, entry, neuron);
        if (row >= 0 && k + target < to.stride) {
          Vector<T, V> x;
          for (int i = 0; i < V; ++i) {
            x.at[i] = tile[(target + i) * kPitch<T> + neuron];
          }
          store_columns(to.values, row * to.stride + k + target, x);
        }
      });
      __syncwarp();
    }
  }
}

template <class T, int V>
__global__ void __launch_bounds__(kTileThreads)
    to_dense_kernel(const __grid_constant__ Rows<T> rows, const __grid_constant__ DenseMap<T> dense) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  T* tile = dynamic_shared<T>() + warp * kTile * kPitch<T>;  // (targets, neurons)
  const int64_t cells = rows.pattern.positions * dense.channels, items = (cells + kTile - 1) / kTile;
  for (int64_t item = int64_t{blockIdx.x} * kTileWarps + warp; item < items; item += int64_t{gridDim.x} * kTileWarps) {
    const int64_t cell = item * kTile + lane;
    int64_t entry = -1;
    T* to = nullptr;
    if (cell < cells) {
      const int64_t position = cell / dense.channels, channel = cell - position * dense.channels;
      const int64_t* range = rows.pattern.offsets + position;
      entry = entry_of(rows.pattern.channels, range[0], range[1], static_cast<int32_t>(channel));
      to = dense.data + address(dense, position, channel);
    }
    const int64_t row = entry >= 0 ? rows.begin(entry) : -1;
    for (int64_t k = int64_t{blockIdx.y} * kTile; k < dense.targets; k += int64_t{gridDim.y} * kTile) {
      over_tile<V>(lane, [&](int neuron, int target) {
        const int64_t from = __shfl_sync(kAllLanes, row, neuron);
        if (from >= 0 && k + target < dense.targets) {
          const Vector<T, V> x = load_columns<T, V>(rows.values + from + k + target, dense.targets - k - target);
          for (int i = 0; i < V; ++i) {
            tile[(target + i) * kPitch<T> + neuron] = x.at[i];
          }
        }
      });
      __syncwarp();
#pragma unroll 8
      for (int i = 0; i < kTile; ++i) {
        if (to != nullptr && k + i < dense.targets) {
          to[(k + i) * dense.target_stride] = entry >= 0 ? tile[i * kPitch<T> + lane] : zero<T>();
        }
      }
      __syncwarp();
    }
  }
}

// f(row of this block, column) for the vectors of its rows, `lanes` threads beside each other on each row.
template <int V, class Body>
__device__ __forceinline__ void over_vectors(int rows, int64_t stride, int lanes, Body&& body) {
  for (int row = threadIdx.x / lanes; row < rows; row += kThreads / lanes) {
    for (int64_t k = threadIdx.x % lanes * V; k < stride; k += lanes * V) {
      body(row, k);
    }
  }
}

template <class T, int V>
__device__ __forceinline__ void store_sum(T* to, const Accumulate<T> (&sum)[V]) {
  Vector<T, V> x;
  for (int i = 0; i < V; ++i) {
    x.at[i] = from_float<T>(sum[i]);
  }
  store_vector(to, x);
}

// Where the neuron of an entry begins among a source's values, or -1, and what it is multiplied with.
template <class T>
struct Found {
  int64_t begin;
  Accumulate<T> factor;
};
template <class T>
__device__ __forceinline__ Found<T> find(const Sum<T>& p, const Summand<T>& summand, int64_t entry) {
  const Pattern& theirs = summand.source.pattern;
  const bool same = theirs.offsets == p.pattern.offsets && theirs.channels == p.pattern.channels;
  if (same && summand.factor.data == nullptr) {
    return {summand.source.begin(entry), 1};
  }
  const int64_t position = position_of(p.pattern.offsets, p.pattern.positions, entry);
  const int32_t channel = p.pattern.channels[entry];
  if (!same) {
    entry = entry_of(theirs.channels, theirs.offsets[position], theirs.offsets[position + 1], channel);
    if (entry < 0) {
      return {-1, 0};
    }
  }
  const bool ones = summand.factor.data == nullptr;
  return {summand.source.begin(entry),
          ones ? 1 : to_float(summand.factor.at(position / p.spatial, channel, position % p.spatial))};
}

template <class T, int V>
__global__ void __launch_bounds__(kThreads) sum_kernel(const __grid_constant__ Sum<T> p, int lanes) {
  Found<T>* found = dynamic_shared<Found<T>>();  // (sources, kRows)
  const int64_t first = int64_t{blockIdx.x} * kRows;
  const int here = static_cast<int>(least<int64_t>(kRows, p.to.entries - first));
  for (int i = threadIdx.x; i < p.count * kRows; i += kThreads) {
    if (i % kRows < here) {
      found[i] = find(p, p.sources[i / kRows], first + i % kRows);
    }
  }
  __syncthreads();
  over_vectors<V>(here, p.to.stride, lanes, [&](int row, int64_t k) {
    T* to = p.to.values + (first + row) * p.to.stride + k;
    Accumulate<T> sum[V] = {};
    if (p.onto) {
      const Vector<T, V> x = load_vector<T, V>(to);
      for (int i = 0; i < V; ++i) {
        sum[i] = to_float(x.at[i]);
      }
    }
    for (int s = 0; s < p.count; ++s) {
      const Found<T> source = found[s * kRows + row];
      if (source.begin >= 0 && k < p.to.targets) {
        const T* from = p.sources[s].source.values + source.begin + k;
        const Vector<T, V> x = load_columns<T, V>(from, p.to.targets - k);
        for (int i = 0; i < V; ++i) {
          const Accumulate<T> product = source.factor * to_float(x.at[i]);
          // The first is not added to zero: that would change the sign of a zero.
          sum[i] = s == 0 && !p.onto ? product : sum[i] + product;
        }
      }
    }
    store_sum<T, V>(to, sum);
  });
}

template <class T, int V>
__global__ void __launch_bounds__(kThreads) gather_sum_kernel(const __grid_constant__ GatherSum<T> p, int lanes) {
  const int64_t first = int64_t{blockIdx.x} * kRows;
  const int here = static_cast<int>(least<int64_t>(kRows, p.to.entries - first));
  over_vectors<V>(here, p.to.stride, lanes, [&](int row, int64_t k) {
    const int64_t begin = p.starts[first + row], end = p.starts[first + row + 1];
    Accumulate<T> sum[V] = {};
    for (int64_t at = begin; at < end && k < p.to.targets; ++at) {
      const Vector<T, V> x = load_columns<T, V>(p.source.row(p.rows[at]) + k, p.to.targets - k);
      for (int i = 0; i < V; ++i) {
        sum[i] = at == begin ? to_float(x.at[i]) : sum[i] + to_float(x.at[i]);
      }
    }
    store_sum<T, V>(p.to.values + (first + row) * p.to.stride + k, sum);
  });
}

// Few neurons leave most of the device idle unless blocks divide the targets.
dim3 tile_grid(int64_t items, int64_t targets) {
  const unsigned blocks = blocks_for(items, kTileWarps);
  const int64_t tiles = (targets + kTile - 1) / kTile;
  const int64_t parts = kEnoughBlocks / (blocks == 0 ? 1 : blocks);
  return {blocks, static_cast<unsigned>(least(tiles, parts < 1 ? 1 : parts)), 1};
}

int64_t groups_of(int64_t count) { return (count + kTile - 1) / kTile; }

template <class T>
bool is_vectored(const Rows<T>& rows) {
  return is_aligned(rows.values) && rows.stride % kVector<T> == 0;
}

// Threads side by side on a row: a power of two, no more than a warp.
int lanes_for(int64_t vectors) {
  int lanes = 1;
  while (lanes < vectors && lanes < kWarp) {
    lanes *= 2;
  }
  return lanes;
}

}  // namespace

template <class T>
void sparse_from_dense(const DenseMap<const T>& dense, const Pattern& pattern, const NewRows<T>& to, Stream stream) {
  if (dense.spatial > 1 && dense.position_stride < dense.channel_stride) {
    launch(from_dense_kernel<T, true>, tile_grid(groups_of(pattern.positions) * dense.channels, to.stride),
           kTileThreads, kTileBytes<T>, stream, dense, pattern, to);
  } else {
    launch(from_dense_kernel<T, false>, tile_grid(groups_of(to.entries), to.stride), kTileThreads, kTileBytes<T>,
           stream, dense, pattern, to);
  }
}

template <class T>
void sparse_to_dense(const Rows<T>& rows, const DenseMap<T>& dense, Stream stream) {
  const dim3 grid = tile_grid(groups_of(rows.pattern.positions * dense.channels), dense.targets);
  launch(is_vectored(rows) ? to_dense_kernel<T, kVector<T>> : to_dense_kernel<T, 1>, grid, kTileThreads, kTileBytes<T>,
         stream, rows, dense);
}

template <class T>
void sparse_sum(const Sum<T>& p, Stream stream) {
  bool vectored = true;
  for (int s = 0; s < p.count; ++s) {
    vectored = vectored && is_vectored(p.sources[s].source);
  }
  launch(vectored ? sum_kernel<T, kVector<T>> : sum_kernel<T, 1>, blocks_for(p.to.entries, kRows), kThreads,
         p.count * kRows * sizeof(Found<T>), stream, p, lanes_for(p.to.stride / (vectored ? kVector<T> : 1)));
}

template <class T>
void sparse_gather_sum(const GatherSum<T>& p, Stream stream) {
  const bool vectored = is_vectored(p.source);
  launch(vectored ? gather_sum_kernel<T, kVector<T>> : gather_sum_kernel<T, 1>, blocks_for(p.to.entries, kRows),
         kThreads, 0, stream, p, lanes_for(p.to.stride / (vectored ? kVector<T> : 1)));
}

#define FASTLRP_INSTANTIATE(T)                                                                             \
  template void sparse_from_dense<T>(const DenseMap<const T>&, const Pattern&, const NewRows<T>&, Stream); \
  template void sparse_to_dense<T>(const Rows<T>&, const DenseMap<T>&, Stream);                            \
  template void sparse_sum<T>(const Sum<T>&, Stream);                                                      \
  template void sparse_gather_sum<T>(const GatherSum<T>&, Stream)

FASTLRP_INSTANTIATE(float);
FASTLRP_INSTANTIATE(double);
FASTLRP_INSTANTIATE(__half);
FASTLRP_INSTANTIATE(__nv_bfloat16);

}  // namespace fastlrp::cuda
