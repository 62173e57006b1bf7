#include "pool_parts.h"

namespace fastlrp::cuda {
namespace {

// Lists of winners are made for as many samples at once as stay in the L2 cache (40 MB on an A100, 50 MB on an H100).
constexpr int64_t kListBytes = int64_t{16} << 20;

// Winners, for any number of targets. A scatter in the order of outputs would be one thread's work for each channel of
// each target; lists of what each input won are made once for a sample, by as many threads as it has outputs, and
// shared by all targets, for which the rest is a gather. With I inputs and O outputs a list costs some 8 I + 20 O
// bytes, most of them in the L2 cache, and each target a T for each I and each O. K only says how many targets a thread
// takes.
//
// For each input the outputs that it won are a list: heads[e] for element e of a sample's input, next[] of an
// output, -1 at the end. An output p, an element of the sample's output, is named last - p there, so that atomicMax
// puts the first one in front.
struct Lists {
  int32_t* heads;    // (samples, elements of the input)
  int32_t* next;     // (samples, elements of the output)
  int32_t* overlap;  // not -1 if any list is longer than 1
};

__global__ void __launch_bounds__(kThreads, kBlocks) empty_lists(int32_t* numbers, int64_t count) {
  const int64_t threads = int64_t{gridDim.x} * kThreads;
  for (int64_t i = item_number(); i < count / 4; i += threads) {
    store_vector(numbers + 4 * i, Vector<int32_t, 4>{{-1, -1, -1, -1}});
  }
  if (item_number() < count % 4) {
    numbers[count / 4 * 4 + item_number()] = -1;
  }
}

// One thread for each output. Lists are sorted, whatever the order of the threads: at each place the largest number of
// all that come by stays, and every other goes on to the place after the one that is before it.
__global__ void __launch_bounds__(kThreads, kBlocks)
    list_winners(const int64_t* index, Lists lists, Divisor inner, int64_t C, int64_t outputs, int64_t inputs,
                 bool channels_last) {
  const int64_t size = C * outputs, p = item_number(), sample = blockIdx.z;
  if (p >= size) {
    return;
  }
  const int64_t i = index[sample * size + p];
  // As unsigned, a negative index is too large as well.
  if (static_cast<uint64_t>(i) >= static_cast<uint64_t>(inputs)) {
    return;
  }
  const uint32_t outer = inner.divide(static_cast<uint32_t>(p));
  const int64_t element = channels_last ? i * C + (p - outer * C) : outer * inputs + i;
  int32_t *place = lists.heads + sample * C * inputs + element, *next = lists.next + sample * size;
  int32_t mine = static_cast<int32_t>(size - 1 - p);
  for (int32_t found = atomicMax(place, mine); found >= 0; found = atomicMax(place, mine)) {
    *lists.overlap = 1;
    place = next + (found > mine ? found : mine);
    mine = found > mine ? mine : found;
  }
}

template <class T, int V>
__global__ void __launch_bounds__(kThreads, kBlocks) gather_winners(PoolFlow<T> p, Lists lists, int64_t targets) {
  constexpr int G = kTogether<V>;
  const int64_t size = p.C * p.inputs, element = item_number() * V, b = blockIdx.z;
  const int64_t outputs = p.C * p.outputs, last = outputs - 1;
  if (element >= size) {
    return;
  }
  const int32_t* next = lists.next + b * outputs;
  const T* scale = p.scale == nullptr ? nullptr : p.scale + b * outputs;
  const bool overlap = *lists.overlap >= 0;
  const Vector<int32_t, V> heads = load_vector<int32_t, V>(lists.heads + b * size + element);
  int32_t second[V];
  Accumulate<T> by[V];
  for (int j = 0; j < V; ++j) {
    const bool any = heads.at[j] >= 0;
    second[j] = overlap && any ? next[heads.at[j]] : -1;
    by[j] = any && scale != nullptr ? to_float(scale[last - heads.at[j]]) : Accumulate<T>(1);
  }
  const int64_t first = blockIdx.y * targets, end = first + targets < p.K ? first + targets : p.K;
  FASTLRP_ROLLED
  for (int64_t k = first; k < end; k += G) {
    const T* relevance = p.relevance + b * p.stride_b + k * p.stride_k + last;
    const int exist = static_cast<int>(end - k < G ? end - k : G);
    Sums<T, V> sums;
    sums.clear();
    for (int t = 0; t < G; ++t) {
      for (int j = 0; j < V; ++j) {
        if (t < exist && heads.at[j] >= 0) {
          sums.at[t][j] = to_float(relevance[t * p.stride_k - heads.at[j]]) * by[j];
        }
      }
    }
    for (int j = 0; overlap && j < V; ++j) {
      for (int32_t o = second[j]; o >= 0; o = next[o]) {
        const Accumulate<T> factor = scale == nullptr ? Accumulate<T>(1) : to_float(scale[last - o]);
        for (int t = 0; t < G; ++t) {
          if (t < exist) {
            sums.at[t][j] += to_float(relevance[t * p.stride_k - o]) * factor;
          }
        }
      }
    }
    sums.store(p.out + (b * p.K + k) * size + element, size, exist);
  }
}

int64_t numbers_per_sample(int64_t C, int64_t outputs, int64_t inputs) { return C * (outputs + inputs); }

int64_t samples_at_once(int64_t B, int64_t C, int64_t outputs, int64_t inputs) {
  const int64_t bytes = numbers_per_sample(C, outputs, inputs) * static_cast<int64_t>(sizeof(int32_t));
  return std::clamp<int64_t>(kListBytes / std::max<int64_t>(bytes, 1), 1, std::clamp<int64_t>(B, 1, kGridYZ));
}

}  // namespace

int64_t pool_max_scratch(int64_t B, int64_t C, int64_t outputs, int64_t inputs) {
  return samples_at_once(B, C, outputs, inputs) * numbers_per_sample(C, outputs, inputs) + 1;
}

template <class T>
void pool_max_relevance(const PoolMax<T>& p, Stream stream) {
  PoolFlow<T> flow = p.flow;
  if (is_empty(flow)) {
    return;
  }
  const int64_t outputs = flow.C * flow.outputs, inputs = flow.C * flow.inputs;
  const int64_t samples = samples_at_once(flow.B, flow.C, flow.outputs, flow.inputs);
  const Lists lists{p.scratch, p.scratch + samples * inputs, p.scratch + samples * (inputs + outputs)};
  const Divisor inner(std::max<int64_t>(1, flow.channels_last ? flow.C : flow.outputs));
  const bool wide = inputs % kVector<T> == 0 && is_aligned(flow.out);
  for (int64_t begin = 0; begin < p.flow.B; begin += samples) {
    flow.B = std::min(samples, p.flow.B - begin);
    flow.relevance = p.flow.relevance + begin * flow.stride_b;
    flow.scale = p.flow.scale == nullptr ? nullptr : p.flow.scale + begin * outputs;
    flow.out = p.flow.out + begin * flow.K * inputs;
    const int64_t numbers = samples * (inputs + outputs) + 1;
    launch(&empty_lists, dim3(blocks_for(numbers, 4 * kThreads)), dim3(kThreads), 0, stream, p.scratch, numbers);
    launch(&list_winners, dim3(blocks_for(outputs, kThreads), 1, static_cast<unsigned>(flow.B)), dim3(kThreads), 0,
           stream, p.index + begin * outputs, lists, inner, flow.C, flow.outputs, flow.inputs, flow.channels_last);
    const auto gather = [&]<int V>(Width<V>) {
      const Shares shares(inputs / V, flow.K, flow.B, kTogether<V>);
      launch(&gather_winners<T, V>, shares.grid, dim3(kThreads), 0, stream, flow, lists, shares.targets);
    };
    wide ? gather(Width<kVector<T>>{}) : gather(Width<1>{});
  }
}

#define FASTLRP_POOL_MAX(T) template void pool_max_relevance<T>(const PoolMax<T>&, Stream);
FASTLRP_FOR_TYPES(FASTLRP_POOL_MAX)
#undef FASTLRP_POOL_MAX

}  // namespace fastlrp::cuda
