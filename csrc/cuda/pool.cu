#include "pool_parts.h"

namespace fastlrp::cuda {
namespace {

// Averages: what a window gives to each of its inputs.
template <class A>
struct SlidingAverage {
  Axis axes[3];
  A factor;
  bool divides, count_include_pad;

  __device__ __forceinline__ A weight(int32_t z, int32_t y, int32_t x) const {
    if (!divides) {
      return factor;
    }
    return factor / (static_cast<A>(axes[0].averaged(z, count_include_pad)) *
                     static_cast<A>(axes[1].averaged(y, count_include_pad)) *
                     static_cast<A>(axes[2].averaged(x, count_include_pad)));
  }
};

template <class A>
struct AdaptiveAverage {
  AdaptiveAxis axes[3];

  __device__ __forceinline__ A weight(int32_t z, int32_t y, int32_t x) const {
    return A(1) / (static_cast<A>(axes[0].averaged(z)) * static_cast<A>(axes[1].averaged(y)) *
                   static_cast<A>(axes[2].averaged(x)));
  }
};

// One thread for V neighbours of an input position.
template <class T, int V, class Average>
__global__ void __launch_bounds__(kThreads, kBlocks)
    gather_average(PoolFlow<T> p, Average average, MapOrder order, int64_t first_sample, int64_t targets) {
  constexpr int G = kTogether<V>;
  const int64_t size = p.C * p.inputs, item = item_number(), b = first_sample + blockIdx.z;
  if (item * V >= size) {
    return;
  }
  const Spot spot = order.at(static_cast<uint32_t>(item));
  const Channel channel = channel_of(spot.channel, p.C, p.outputs, p.channels_last);
  const Span z = average.axes[0].outputs_of(spot.z), y = average.axes[1].outputs_of(spot.y),
             x = average.axes[2].outputs_of(spot.x);
  const T* scale = p.scale == nullptr ? nullptr : p.scale + b * p.C * p.outputs;
  const int64_t first = blockIdx.y * targets, end = first + targets < p.K ? first + targets : p.K;
  FASTLRP_ROLLED
  for (int64_t k = first; k < end; k += G) {
    const T* relevance = p.relevance + b * p.stride_b + k * p.stride_k;
    const int exist = static_cast<int>(end - k < G ? end - k : G);
    Sums<T, V> sums;
    sums.clear();
    const auto add = [&](uint32_t position, int32_t oz, int32_t oy, int32_t ox) {
      const uint32_t o = channel.at(position);
      const Accumulate<T> weight = average.weight(oz, oy, ox);
      Accumulate<T> by[V];
      load_scale<T, V>(scale, o, by);
      for (int t = 0; t < G; ++t) {
        if (t < exist) {
          const Vector<T, V> flow = load_vector<T, V>(relevance + t * p.stride_k + o);
          for (int j = 0; j < V; ++j) {
            sums.at[t][j] += to_float(flow.at[j]) * (by[j] * weight);
          }
        }
      }
    };
    over_places(z, y, x, average.axes[1].outputs, average.axes[2].outputs, add);
    sums.store(p.out + (b * p.K + k) * size + item * V, size, exist);
  }
}

// One thread for V neighbours of an output position: the share of each winner.
template <class T, int V>
__global__ void __launch_bounds__(kThreads, kBlocks) share_ties(PoolTies<T> p, MapOrder order, int64_t first_sample) {
  const PoolFlow<T>& flow = p.flow;
  const int64_t size = flow.C * flow.outputs, item = item_number(), b = first_sample + blockIdx.z;
  if (item * V >= size) {
    return;
  }
  const Spot spot = order.at(static_cast<uint32_t>(item));
  const Channel channel = channel_of(spot.channel, flow.C, flow.inputs, flow.channels_last);
  const Span z = p.axes[0].inputs_of(spot.z), y = p.axes[1].inputs_of(spot.y), x = p.axes[2].inputs_of(spot.x);
  const int64_t element = b * size + item * V;
  const Vector<T, V> most = load_vector<T, V>(p.output + element);
  const T* input = p.input + b * flow.C * flow.inputs;
  int32_t winners[V] = {};
  const auto count = [&](uint32_t position, int32_t, int32_t, int32_t) {
    const Vector<T, V> entry = load_vector<T, V>(input + channel.at(position));
    for (int j = 0; j < V; ++j) {
      winners[j] += to_float(entry.at[j]) == to_float(most.at[j]);
    }
  };
  over_places(z, y, x, p.axes[1].inputs, p.axes[2].inputs, count);
  Accumulate<T> by[V];
  load_scale<T, V>(flow.scale, element, by);
  Vector<Accumulate<T>, V> share;
  for (int j = 0; j < V; ++j) {
    share.at[j] = by[j] / static_cast<Accumulate<T>>(winners[j] > 0 ? winners[j] : 1);
  }
  store_vector(p.share + element, share);
}

// One thread for V neighbours of an input position.
template <class T, int V>
__global__ void __launch_bounds__(kThreads, kBlocks)
    gather_ties(PoolTies<T> p, MapOrder order, int64_t first_sample, int64_t targets) {
  constexpr int G = kTogether<V>;
  const PoolFlow<T>& flow = p.flow;
  const int64_t size = flow.C * flow.inputs, item = item_number(), b = first_sample + blockIdx.z;
  if (item * V >= size) {
    return;
  }
  const Spot spot = order.at(static_cast<uint32_t>(item));
  const Channel channel = channel_of(spot.channel, flow.C, flow.outputs, flow.channels_last);
  const Span z = p.axes[0].outputs_of(spot.z), y = p.axes[1].outputs_of(spot.y), x = p.axes[2].outputs_of(spot.x);
  const Vector<T, V> entry = load_vector<T, V>(p.input + b * size + item * V);
  const T* output = p.output + b * flow.C * flow.outputs;
  const Accumulate<T>* shares = p.share + b * flow.C * flow.outputs;
  const int64_t first = blockIdx.y * targets, end = first + targets < flow.K ? first + targets : flow.K;
  FASTLRP_ROLLED
  for (int64_t k = first; k < end; k += G) {
    const T* relevance = flow.relevance + b * flow.stride_b + k * flow.stride_k;
    const int exist = static_cast<int>(end - k < G ? end - k : G);
    Sums<T, V> sums;
    sums.clear();
    const auto add = [&](uint32_t position, int32_t, int32_t, int32_t) {
      const uint32_t o = channel.at(position);
      const Vector<T, V> most = load_vector<T, V>(output + o);
      const Vector<Accumulate<T>, V> share = load_vector<Accumulate<T>, V>(shares + o);
      for (int t = 0; t < G; ++t) {
        if (t < exist) {
          const Vector<T, V> given = load_vector<T, V>(relevance + t * flow.stride_k + o);
          for (int j = 0; j < V; ++j) {
            // A select: what another input gets may be NaN.
            const bool wins = to_float(entry.at[j]) == to_float(most.at[j]);
            sums.at[t][j] += wins ? to_float(given.at[j]) * share.at[j] : Accumulate<T>(0);
          }
        }
      }
    };
    over_places(z, y, x, p.axes[1].outputs, p.axes[2].outputs, add);
    sums.store(flow.out + (b * flow.K + k) * size + item * V, size, exist);
  }
}

template <class T, class Average>
void average_relevance(const PoolFlow<T>& p, const Average& average, Stream stream) {
  if (is_empty(p)) {
    return;
  }
  const auto run = [&]<int V>(Width<V>) {
    const MapOrder order(p.C, average.axes[0].inputs, average.axes[1].inputs, average.axes[2].inputs, V,
                         p.channels_last);
    over_samples(p.B, [&](int64_t first, int64_t samples) {
      const Shares shares(p.C * p.inputs / V, p.K, samples, kTogether<V>);
      launch(&gather_average<T, V, Average>, shares.grid, dim3(kThreads), 0, stream, p, average, order, first,
             shares.targets);
    });
  };
  is_wide(p) ? run(Width<kVector<T>>{}) : run(Width<1>{});
}

}  // namespace

template <class T>
void pool_avg_relevance(const PoolAvg<T>& p, Stream stream) {
  average_relevance(
      p.flow,
      SlidingAverage<Accumulate<T>>{
          {p.axes[0], p.axes[1], p.axes[2]}, static_cast<Accumulate<T>>(p.factor), p.divides, p.count_include_pad},
      stream);
}

template <class T>
void pool_adaptive_avg_relevance(const PoolAdaptiveAvg<T>& p, Stream stream) {
  average_relevance(p.flow, AdaptiveAverage<Accumulate<T>>{{p.axes[0], p.axes[1], p.axes[2]}}, stream);
}

template <class T>
void pool_ties_relevance(const PoolTies<T>& p, Stream stream) {
  const PoolFlow<T>& flow = p.flow;
  if (is_empty(flow)) {
    return;
  }
  const auto run = [&]<int V>(Width<V>) {
    const auto order = [&](const auto& size) {
      return MapOrder(flow.C, size(p.axes[0]), size(p.axes[1]), size(p.axes[2]), V, flow.channels_last);
    };
    const MapOrder inputs = order([](const Axis& axis) { return axis.inputs; });
    over_samples(flow.B, [&](int64_t first, int64_t samples) {
      if (flow.outputs > 0) {
        const dim3 grid(blocks_for(flow.C * flow.outputs / V, kThreads), 1, static_cast<unsigned>(samples));
        launch(&share_ties<T, V>, grid, dim3(kThreads), 0, stream, p,
               order([](const Axis& axis) { return axis.outputs; }), first);
      }
      const Shares shares(flow.C * flow.inputs / V, flow.K, samples, kTogether<V>);
      launch(&gather_ties<T, V>, shares.grid, dim3(kThreads), 0, stream, p, inputs, first, shares.targets);
    });
  };
  is_wide(flow) && is_aligned(p.input) && is_aligned(p.output) ? run(Width<kVector<T>>{}) : run(Width<1>{});
}

#define FASTLRP_POOLS(T)                                                           \
  template void pool_avg_relevance<T>(const PoolAvg<T>&, Stream);                  \
  template void pool_adaptive_avg_relevance<T>(const PoolAdaptiveAvg<T>&, Stream); \
  template void pool_ties_relevance<T>(const PoolTies<T>&, Stream);
FASTLRP_FOR_TYPES(FASTLRP_POOLS)
#undef FASTLRP_POOLS

}  // namespace fastlrp::cuda
