// What the kernels of pools share.
#pragma once

#include <algorithm>

#include "../common/maps.h"
#include "pool.h"

namespace fastlrp::cuda {

constexpr int kThreads = 256;
// Blocks that an SM must be able to hold: up to 80 registers. Left to choose, ptxas spills a few to fit one more.
constexpr int kBlocks = 3;
// Targets are shared out to more threads until there are this many: enough to fill 132 SMs with 2048 threads each.
constexpr int64_t kEnoughThreads = int64_t{1} << 18;
// Targets that a thread has in registers at once: what it knows of the caches serves all of them, and their loads are
// in flight together.
template <int V>
constexpr int kTogether = V > 4 ? 2 : 4;

// A grid over (items of a sample, parts of the targets, samples).
struct Shares {
  dim3 grid;
  int64_t targets;  // of each part

  Shares(int64_t items, int64_t K, int64_t samples, int64_t together) {
    const int64_t groups = (K + together - 1) / together;
    const int64_t wanted = std::clamp<int64_t>(kEnoughThreads / (items * samples), 1, std::min(groups, kGridYZ));
    targets = (groups + wanted - 1) / wanted * together;
    grid = dim3(blocks_for(items, kThreads), static_cast<unsigned>((K + targets - 1) / targets),
                static_cast<unsigned>(samples));
  }
};

// run(first sample, how many) for as many at once as a grid holds.
template <class Run>
void over_samples(int64_t B, Run&& run) {
  for (int64_t first = 0; first < B; first += kGridYZ) {
    run(first, std::min(B - first, kGridYZ));
  }
}

__device__ __forceinline__ int64_t item_number() { return int64_t{blockIdx.x} * kThreads + threadIdx.x; }

// The sums of `V` neighbours for the targets [k, k + kTogether), of which those up to `end` exist.
template <class T, int V>
struct Sums {
  static constexpr int G = kTogether<V>;
  Accumulate<T> at[G][V];

  __device__ __forceinline__ void clear() {
    for (int t = 0; t < G; ++t) {
      for (int j = 0; j < V; ++j) {
        at[t][j] = 0;
      }
    }
  }

  __device__ __forceinline__ void store(T* out, int64_t stride, int count) const {
    for (int t = 0; t < G; ++t) {
      if (t < count) {
        Vector<T, V> rounded;
        for (int j = 0; j < V; ++j) {
          rounded.at[j] = from_float<T>(at[t][j]);
        }
        store_vector(out + t * stride, rounded);
      }
    }
  }
};

template <class T, int V>
__device__ __forceinline__ void load_scale(const T* scale, int64_t at, Accumulate<T> (&by)[V]) {
  if (scale == nullptr) {
    for (int j = 0; j < V; ++j) {
      by[j] = 1;
    }
    return;
  }
  const Vector<T, V> loaded = load_vector<T, V>(scale + at);
  for (int j = 0; j < V; ++j) {
    by[j] = to_float(loaded.at[j]);
  }
}

template <int V>
using Width = std::integral_constant<int, V>;

template <class T>
bool is_empty(const PoolFlow<T>& p) {
  return p.B == 0 || p.K == 0 || p.C == 0 || p.inputs == 0;
}

// Whether V neighbours of every map can be read at once.
template <class T>
bool is_wide(const PoolFlow<T>& p) {
  constexpr int V = kVector<T>;
  return p.channels_last && p.C % V == 0 && p.stride_b % V == 0 && p.stride_k % V == 0 && is_aligned(p.relevance) &&
         is_aligned(p.scale) && is_aligned(p.out);
}

// f(T) for every type that kernels take.
#define FASTLRP_FOR_TYPES(f) f(float) f(double) f(__half) f(__nv_bfloat16)

}  // namespace fastlrp::cuda
