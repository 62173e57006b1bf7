#include "../common/maps.h"
#include "input_rules_columns.cuh"

// Few input channels leave a convolution's backward pass little to share: a thread holds outputs of the layer
// ("sources") and computes for each a row of products, one for every tap, term and channel of the input ("columns"):
//
//   acc[source][tap, term, channel] = sum over o of (u F)[o, source] W_term[o, channel, tap]
//
// so that F is read once for all of them and every product that is made is needed, whatever the stride. Then each tap
// adds its columns where it stands: two sources never meet at one place with the same tap, so a tap's sums need no
// atomics, and barriers between taps keep their order. The block's part of the map lies in shared memory until all have
// been added; it is multiplied, added over terms (and channels) and written once.

namespace fastlrp::cuda {
namespace {

constexpr int kThreads = 128;
// Sources of a thread: each weight read from shared memory is used so many times.
constexpr int kSources = 2;
// Columns of a chunk, of 4-byte sums, in the wide and in the narrow kernel: the second takes 3x3 taps of 3 channels for
// one term, the first for two. As many blocks must fit a multiprocessor: up to 255 and 168 registers.
constexpr int kWide = 56, kNarrow = 28;
constexpr int kWideBlocks = 2, kNarrowBlocks = 3;
// Bytes of shared memory for weights, and for a block's part of the map.
constexpr size_t kWeightBytes = 14 * 1024;
constexpr size_t kMapBytes = 64 * 1024;

// Where a thread's sources are; null: there is none.
template <class T>
struct Source {
  const T *relevance, *u;
  int32_t at[3];
};

// What a thread reads at once: V channels of each of its sources.
template <class T, int V>
struct Reading {
  Vector<T, V> relevance[kSources] = {}, u[kSources] = {};

  __device__ __forceinline__ void read(const Source<T> (&sources)[kSources], int64_t at, int64_t u_at) {
#pragma unroll
    for (int n = 0; n < kSources; ++n) {
      if (sources[n].relevance != nullptr) {
        relevance[n] = load_vector<T, V>(sources[n].relevance + at);
        u[n] = load_vector<T, V>(sources[n].u + u_at);
      }
    }
  }
};

// acc[s][c] += sum over `count` output channels, V of them at once, of u F times weights. What comes next is read
// before what is there is multiplied.
template <class T, int N, int V>
__device__ __forceinline__ void multiply(const InputRelevance<T>& p, const Source<T> (&sources)[kSources],
                                         int64_t first, int32_t count, const Accumulate<T>* weights,
                                         Accumulate<T> (&acc)[kSources][N]) {
  using A = Accumulate<T>;
  constexpr int W = 16 / sizeof(A);
  const int64_t stride = V > 1 ? 1 : p.strides[2], u_stride = V > 1 ? 1 : p.coefficient_strides[1];
  Reading<T, V> next;
  next.read(sources, first * stride, first * u_stride);
  FASTLRP_ROLLED
  for (int32_t o = 0; o < count; o += V) {
    A s[kSources][V];
#pragma unroll
    for (int n = 0; n < kSources; ++n) {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        s[n][v] = to_float(next.relevance[n].at[v]) * to_float(next.u[n].at[v]);
      }
    }
    if (o + V < count) {
      next.read(sources, (first + o + V) * stride, (first + o + V) * u_stride);
    }
#pragma unroll
    for (int v = 0; v < V; ++v) {
#pragma unroll
      for (int c = 0; c < N; c += W) {
        const auto weight = load_vector<A, W>(weights + (o + v) * N + c);
#pragma unroll
        for (int w = 0; w < W; ++w) {
#pragma unroll
          for (int n = 0; n < kSources; ++n) {
            acc[n][c + w] += s[n][v] * weight.at[w];
          }
        }
      }
    }
  }
}

// Adds the columns where their taps stand. All threads of the block call it.
template <class T, int N>
__device__ __forceinline__ void scatter(const Job<T>& job, const Column<T>* columns, const int32_t* origin,
                                        const Source<T> (&sources)[kSources], const Accumulate<T> (&acc)[kSources][N],
                                        Accumulate<T>* map) {
  const Axis* axes = job.p.axes;
  const int32_t* size = job.tile.size;
  int32_t places[kSources];
#pragma unroll
  for (int c = 0; c < N; ++c) {
    const Column<T>& column = columns[c];
    if (column.weight != nullptr) {
      if (column.fresh) {
        __syncthreads();
#pragma unroll
        for (int n = 0; n < kSources; ++n) {
          int32_t place = 0;
          for (int a = 0; a < 3; ++a) {
            const int64_t at = int64_t{sources[n].at[a]} * axes[a].stride + column.standing[a] - origin[a];
            place = place < 0 || at < 0 || at >= size[a] ? -1 : place * size[a] + static_cast<int32_t>(at);
          }
          places[n] = sources[n].relevance == nullptr ? -1 : place;
        }
      }
      Accumulate<T>* slot = map + column.slot * job.tile.places;
#pragma unroll
      for (int n = 0; n < kSources; ++n) {
        if (places[n] >= 0) {
          slot[places[n]] += acc[n][c];
        }
      }
    }
  }
}

// Multiplies, adds slots and writes a block's part of the map.
template <class T>
__device__ __forceinline__ void write(const Job<T>& job, int64_t b, int64_t k, const int32_t* origin,
                                      const Accumulate<T>* map) {
  using A = Accumulate<T>;
  const InputRelevance<T>& p = job.p;
  const int32_t channels = p.reduce ? 1 : static_cast<int32_t>(p.Ci);
  const int64_t spatial = int64_t{p.axes[0].inputs} * p.axes[1].inputs * p.axes[2].inputs;
  T* out = p.out + (b * p.K + k) * spatial * channels;
  FASTLRP_ROLLED
  for (int32_t i = threadIdx.x; i < job.tile.places * channels; i += blockDim.x) {
    const int32_t number = i / channels, channel = i - number * channels;
    const Place place(number, job.tile.size[1], job.tile.size[2]);
    int64_t at[3];
    bool inside = true;
    for (int a = 0; a < 3; ++a) {
      at[a] = int64_t{origin[a]} + place.at[a];
      inside = inside && at[a] < p.axes[a].inputs;
    }
    if (!inside) {
      continue;
    }
    const int64_t* strides = p.multiplier_strides;
    const int64_t multiplier_at = b * strides[0] + at[0] * strides[2] + at[1] * strides[3] + at[2] * strides[4];
    A sum = 0;
    FASTLRP_ROLLED
    for (int term = 0; term < p.terms; ++term) {
      const T* multiplier = p.multipliers[term];
      const int32_t begin = p.reduce ? 0 : channel, end = p.reduce ? slots_of(p, term) : channel + 1;
      FASTLRP_ROLLED
      for (int32_t c = begin; c < end; ++c) {
        const A value = map[(job.first_slot[term] + c) * job.tile.places + number];
        sum += multiplier == nullptr ? value : value * to_float(multiplier[multiplier_at + c * strides[1]]);
      }
    }
    const int64_t position = (at[0] * p.axes[1].inputs + at[1]) * p.axes[2].inputs + at[2];
    out[position * channels + channel] = from_float<T>(sum);
  }
}

// One block for each part of the map of a sample and target. Targets run fastest: they share coefficients.
template <class T, int N, int V>
__global__ void __launch_bounds__(kThreads, (N > kNarrow * 4 / sizeof(Accumulate<T>) ? kWideBlocks : kNarrowBlocks))
    relevance_kernel(const __grid_constant__ Job<T> job) {
  using A = Accumulate<T>;
  const InputRelevance<T>& p = job.p;
  A* weights = dynamic_shared<A>();
  A* map = weights + job.channels_at_once * N;
  Column<T>* columns = shared_array<Column<T>, N, __LINE__>();
  for (int64_t block = blockIdx.x; block < job.blocks; block += gridDim.x) {
    const int64_t k = block % p.K, tile = block / p.K % job.tile.tiles, b = block / p.K / job.tile.tiles;
    const Place corner(static_cast<int32_t>(tile), job.tile.count[1], job.tile.count[2]);
    int32_t origin[3];
    for (int a = 0; a < 3; ++a) {
      origin[a] = corner.at[a] * job.tile.size[a];
    }
    const Reach reach = reach_of(p.axes, origin, job.tile.size);
    __syncthreads();
    for (int32_t i = threadIdx.x; i < job.slots * job.tile.places; i += blockDim.x) {
      map[i] = 0;
    }
    FASTLRP_ROLLED
    for (int32_t begin = 0; begin < reach.total; begin += kSources * blockDim.x) {
      for (int coefficient = 0; coefficient < p.coefficient_count; ++coefficient) {
        Source<T> sources[kSources];
#pragma unroll
        for (int n = 0; n < kSources; ++n) {
          const int32_t number = begin + n * blockDim.x + threadIdx.x;
          const Place place(number, reach.count[1], reach.count[2]);
          int64_t at = b * p.strides[0] + k * p.strides[1], u_at = b * p.coefficient_strides[0];
          for (int a = 0; a < 3; ++a) {
            sources[n].at[a] = reach.first[a] + place.at[a];
            at += sources[n].at[a] * p.strides[3 + a];
            u_at += sources[n].at[a] * p.coefficient_strides[2 + a];
          }
          sources[n].relevance = number < reach.total ? p.relevance + at : nullptr;
          sources[n].u = p.coefficients[coefficient] + u_at;
        }
        const int32_t all = job.taps * job.columns_of[coefficient];
        FASTLRP_ROLLED
        for (int32_t first = 0; first < all; first += N) {
          A acc[kSources][N] = {};
          __syncthreads();
          for (int32_t i = threadIdx.x; i < N; i += blockDim.x) {
            columns[i] = column_of(job, coefficient, first + i, i);
          }
          FASTLRP_ROLLED
          for (int64_t o = 0; o < p.Co; o += job.channels_at_once) {
            const int32_t count =
                static_cast<int32_t>(p.Co - o < job.channels_at_once ? p.Co - o : int64_t{job.channels_at_once});
            __syncthreads();
            stage<T, N>(job, columns, o, count, weights);
            __syncthreads();
            multiply<T, N, V>(p, sources, o, count, weights, acc);
          }
          scatter<T, N>(job, columns, origin, sources, acc, map);
        }
      }
    }
    __syncthreads();
    write(job, b, k, origin, map);
  }
}

template <class T, int N, int V>
void launch_relevance(Job<T>& job, Stream stream) {
  using A = Accumulate<T>;
  constexpr int64_t most = kWeightBytes / (N * sizeof(A)) / 4 * 4;
  job.channels_at_once = static_cast<int32_t>(std::min<int64_t>(most, parts(job.p.Co, 4) * 4));
  const size_t bytes = (int64_t{job.channels_at_once} * N + job.slots * job.tile.places) * sizeof(A);
  launch(relevance_kernel<T, N, V>, dim3(blocks_for(job.blocks, 1)), dim3(job.tile.threads), bytes, stream, job);
}

// The narrowest kernel that takes a tap's columns at once, or the widest.
template <class T, int V>
void launch_columns(Job<T>& job, Stream stream) {
  constexpr int narrow = kNarrow * 4 / sizeof(Accumulate<T>), wide = kWide * 4 / sizeof(Accumulate<T>);
  int32_t most = 0;
  for (int coefficient = 0; coefficient < job.p.coefficient_count; ++coefficient) {
    most = std::max(most, job.taps * job.columns_of[coefficient]);
  }
  most <= narrow ? launch_relevance<T, narrow, V>(job, stream) : launch_relevance<T, wide, V>(job, stream);
}

}  // namespace

template <class T>
void input_relevance(const InputRelevance<T>& p, Stream stream) {
  using A = Accumulate<T>;
  Job<T> job{};
  job.p = p;
  job.taps = static_cast<int32_t>(product(p.axes, &Axis::taps));
  for (int term = 0; term < p.terms; ++term) {
    job.first_slot[term] = job.slots;
    job.slots += slots_of(p, term);
    job.columns_of[p.coefficient_of[term]] += slots_of(p, term);
  }
  job.tile = tile_of(p.axes, std::max<int64_t>(1, kMapBytes / (job.slots * sizeof(A))), kThreads * kSources, kSources);
  job.blocks = p.B * p.K * job.tile.tiles;
  constexpr int V = sizeof(T) == 8 ? 2 : 4;
  reads_vectors(p.relevance, p.strides, p.coefficients, p.coefficient_count, p.coefficient_strides, p.Co, V)
      ? launch_columns<T, V>(job, stream)
      : launch_columns<T, 1>(job, stream);
}

#define FASTLRP_INPUT_RELEVANCE(T) template void input_relevance<T>(const InputRelevance<T>&, Stream);
FASTLRP_INPUT_RELEVANCE(float)
FASTLRP_INPUT_RELEVANCE(double)
FASTLRP_INPUT_RELEVANCE(__half)
FASTLRP_INPUT_RELEVANCE(__nv_bfloat16)
#undef FASTLRP_INPUT_RELEVANCE

}  // namespace fastlrp::cuda
