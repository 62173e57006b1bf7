// Lists of alive neurons: one bit per neuron from the masks, then the bits' places.
//
// A warp reads the masks for 32 positions times 32 channels, one row of 32 neighbours in memory at a time: channels of
// a position where channels are innermost, then the row's bits are a ballot; positions of a channel where these are,
// then each lane collects the bits of its own position. Either way lane i ends with the word of position i, and the map
// is read in whole lines without being transposed. A float32 map is 32 times the bits', so what follows is small.

#include "block_scan.h"
#include "sparse_pattern.h"

namespace fastlrp::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kBlocks = 4;  // on a multiprocessor: left alone, ptxas spills registers for more

template <class T>
__device__ __forceinline__ bool is_alive(T x) {
  return to_float(x) != Accumulate<T>(0);  // what is not a number is not zero
}

// One mask's values for at most 32 positions, of which this lane has (sample, place), times at most 32 channels.
template <class T, bool indexed>
struct Tile {
  const Mask<T>& mask;
  int64_t sample, place, channel;
  int positions, channels, lane;

  __device__ __forceinline__ uint32_t word() const {
    const auto map = [&] {
      if constexpr (indexed) {
        return mask.index;
      } else {
        return mask.map;
      }
    }();
    // Where a sample is one position, its neighbours are samples.
    return map.channel < (map.position == 0 ? map.batch : map.position) ? by_channels() : by_positions();
  }

  __device__ __forceinline__ bool names_a_place(int64_t index) const {
    return static_cast<uint64_t>(index) < static_cast<uint64_t>(mask.places);
  }

  __device__ __forceinline__ uint32_t by_channels() const {
    const T* values = mask.map.data + (channel + lane) * mask.map.channel;
    const int64_t* index = mask.index.data + (channel + lane) * mask.index.channel;
    const int64_t begin = sample * mask.map.batch;
    const int64_t at =
        indexed ? sample * mask.index.batch + place * mask.index.position : begin + place * mask.map.position;
    uint32_t found = 0;
#pragma unroll 8
    for (int i = 0; i < kWarp; ++i) {
      int64_t from = __shfl_sync(kAllLanes, at, i);
      const int64_t start = indexed ? __shfl_sync(kAllLanes, begin, i) : 0;
      bool alive = false;
      if (lane < channels && i < positions) {
        bool inside = true;
        if constexpr (indexed) {
          const int64_t named = index[from];
          inside = names_a_place(named);
          from = start + named * mask.map.position;
        }
        alive = inside && is_alive(values[from]);
      }
      const uint32_t votes = __ballot_sync(kAllLanes, alive);
      found = lane == i ? votes : found;
    }
    return found;
  }

  __device__ __forceinline__ uint32_t by_positions() const {
    uint32_t found = 0;
    const T* values = mask.map.data + sample * mask.map.batch + channel * mask.map.channel;
    const int64_t at = indexed ? sample * mask.index.batch + channel * mask.index.channel + place * mask.index.position
                               : place * mask.map.position;
#pragma unroll 8
    for (int i = 0; i < kWarp; ++i) {
      if (lane < positions && i < channels) {
        int64_t from = at;
        bool inside = true;
        if constexpr (indexed) {
          const int64_t named = mask.index.data[at + i * mask.index.channel];
          inside = names_a_place(named);
          from = named * mask.map.position;
        }
        found |= static_cast<uint32_t>(inside && is_alive(values[from + i * mask.map.channel])) << i;
      }
    }
    return found;
  }
};

template <class T, bool indexed>
__device__ __forceinline__ uint32_t word_of(const Mask<T>& mask, int64_t sample, int64_t place, int64_t channel,
                                            int positions, int channels, int lane) {
  return Tile<T, indexed>{mask, sample, place, channel, positions, channels, lane}.word();
}

template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks) mask_words_kernel(const __grid_constant__ MaskWords<T> p) {
  const int lane = threadIdx.x % kWarp;
  const int64_t positions = p.batch * p.spatial, width = (p.channels + kWarp - 1) / kWarp;
  const int64_t items = (positions + kWarp - 1) / kWarp * width, step = int64_t{gridDim.x} * kWarps;
  // The warps of a block write neighbouring words.
  for (int64_t item = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp; item < items; item += step) {
    const int64_t first = item / width * kWarp, word = item % width;
    const int64_t position = first + lane < positions ? first + lane : first;
    const int64_t sample = position / p.spatial, place = position % p.spatial;
    const int channels = static_cast<int>(least<int64_t>(kWarp, p.channels - word * kWarp));
    const int here = static_cast<int>(least<int64_t>(kWarp, positions - first));
    uint32_t* to = p.words + position * width + word;
    uint32_t found = p.onto ? *to : 0;
    for (int m = 0; m < p.count; ++m) {
      const Mask<T>& mask = p.masks[m];
      found |= mask.index.data == nullptr ? word_of<T, false>(mask, sample, place, word * kWarp, here, channels, lane)
                                          : word_of<T, true>(mask, sample, place, word * kWarp, here, channels, lane);
    }
    if (lane < here) {
      *to = found;
    }
  }
}

__global__ void __launch_bounds__(kThreads) count_words_kernel(const __grid_constant__ WordLists p) {
  int* shared = dynamic_shared<int>();
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  int total;
  block_scan<kWarps>(i < p.positions * p.width ? __popc(p.words[i]) : 0, shared, total);
  if (threadIdx.x == 0) {
    p.begin[blockIdx.x] = total;
  }
}

// Each thread finds where one word's entries begin; then a warp writes them out word by word, a lane for each bit.
__global__ void __launch_bounds__(kThreads)
    list_words_kernel(const __grid_constant__ WordLists p, int64_t* offsets, int32_t* channels) {
  int* shared = dynamic_shared<int>();
  const int lane = threadIdx.x % kWarp;
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x, words = p.positions * p.width;
  const uint32_t word = i < words ? p.words[i] : 0;
  int total;
  const int64_t begin = p.begin[blockIdx.x] + block_scan<kWarps>(__popc(word), shared, total);
  const int32_t channel = static_cast<int32_t>(i % p.width) * kWarp;
  if (i < words && channel == 0) {
    offsets[i / p.width] = begin;
  }
  if (i == words - 1) {
    offsets[p.positions] = begin + __popc(word);
  }
  for (int from = 0; from < kWarp; ++from) {
    const uint32_t bits = __shfl_sync(kAllLanes, word, from);
    const int64_t to = __shfl_sync(kAllLanes, begin, from);
    const int32_t first = __shfl_sync(kAllLanes, channel, from);
    if (bits >> lane & 1) {
      channels[to + __popc(bits & lanes_below(lane))] = first + lane;
    }
  }
}

}  // namespace

template <class T>
void mask_words(const MaskWords<T>& p, Stream stream) {
  const int64_t groups = (p.batch * p.spatial + kWarp - 1) / kWarp, width = (p.channels + kWarp - 1) / kWarp;
  launch(mask_words_kernel<T>, blocks_for(groups * width, kWarps), kThreads, 0, stream, p);
}

int64_t WordLists::tiles() const { return (positions * width + kThreads - 1) / kThreads; }

void count_words(const WordLists& p, Stream stream) {
  launch(count_words_kernel, blocks_for(p.positions * p.width, kThreads), kThreads, kWarps * sizeof(int), stream, p);
}

void list_words(const WordLists& p, int64_t* offsets, int32_t* channels, Stream stream) {
  launch(list_words_kernel, blocks_for(p.positions * p.width, kThreads), kThreads, kWarps * sizeof(int), stream, p,
         offsets, channels);
}

#define FASTLRP_INSTANTIATE(T) template void mask_words<T>(const MaskWords<T>&, Stream)

FASTLRP_INSTANTIATE(float);
FASTLRP_INSTANTIATE(double);
FASTLRP_INSTANTIATE(__half);
FASTLRP_INSTANTIATE(__nv_bfloat16);

}  // namespace fastlrp::cuda
