#include <algorithm>
#include <cmath>

#include "../common/maps.h"
#include "elementwise.h"

namespace fastlrp::cuda {
namespace {

constexpr int kThreads = 256;
// Blocks that an SM must be able to hold: up to 80 registers. Left to choose, ptxas spills a few to fit one more.
constexpr int kBlocksEach = 3;
// The SMs of an H100 times the blocks of this size that fill one: a sweep walks on from there.
constexpr int64_t kBlocks = 132 * 8;
// A thread takes a pool's window and its part of the input, if that has at most so many positions; else one sweep
// makes the coefficients and another the maxima.
constexpr int64_t kLargestPart = 16;

__device__ __forceinline__ int64_t item_number() { return int64_t{blockIdx.x} * kThreads + threadIdx.x; }

template <class A>
__device__ __forceinline__ A stabilized(A z, A epsilon) {
  return z + (z < A(0) ? -epsilon : epsilon);
}

template <class A>
__device__ __forceinline__ A quotient(A numerator, A denominator) {
  return denominator == A(0) ? A(0) : numerator / denominator;
}

// NaN stays.
template <class A>
__device__ __forceinline__ A rectified(A z) {
  return z < A(0) ? A(0) : z;
}

template <class A>
struct Pair {
  A u, v;
};

// Of one neuron; which of the arguments are read, and which of the two are made, depends on the rule.
template <Rule rule, class A>
__device__ __forceinline__ Pair<A> coefficients(A z, A positive, A negative, A factor, A alpha, A epsilon) {
  if (factor == A(0)) {
    return {A(0), A(0)};
  }
  if constexpr (rule == Rule::epsilon) {
    return {quotient(factor, stabilized(z, epsilon)), A(0)};
  } else if constexpr (rule == Rule::zplus) {
    return {A(0), alpha * quotient(factor, stabilized(positive, epsilon))};
  } else {
    const bool up = z > A(0);
    const A q = quotient(factor, stabilized(z + alpha * (up ? positive : negative), epsilon));
    if (z == A(0)) {
      return {A(0), A(0)};
    }
    return up ? Pair<A>{q, alpha * q} : Pair<A>{(A(1) + alpha) * q, -alpha * q};
  }
}

// What both operations have: tensors in one order.
template <class T>
struct Maps {
  const T *z, *positive, *negative, *factor;
  T *u, *v;
  Accumulate<T> alpha, epsilon;
  bool rectifies;  // the factor is max(z, 0)
};

template <class T, int V>
__device__ __forceinline__ Vector<T, V> load_if(bool needed, const T* from, int64_t at) {
  return needed ? load_vector<T, V>(from + at) : Vector<T, V>{};
}

template <Rule rule, class T, int V>
__device__ __forceinline__ void sweep_at(const Maps<T>& m, int64_t at) {
  using A = Accumulate<T>;
  const bool has_factor = m.factor != nullptr;
  const Vector<T, V> z = load_if<T, V>(rule != Rule::zplus || m.rectifies, m.z, at);
  const Vector<T, V> positive = load_if<T, V>(rule != Rule::epsilon, m.positive, at);
  const Vector<T, V> negative = load_if<T, V>(rule == Rule::gamma, m.negative, at);
  const Vector<T, V> factor = load_if<T, V>(has_factor, m.factor, at);
  Vector<T, V> u, v;
  for (int j = 0; j < V; ++j) {
    const A here = to_float(z.at[j]);
    const A f = has_factor ? to_float(factor.at[j]) : (m.rectifies ? rectified(here) : A(1));
    const Pair<A> made =
        coefficients<rule>(here, to_float(positive.at[j]), to_float(negative.at[j]), f, m.alpha, m.epsilon);
    u.at[j] = from_float<T>(made.u);
    v.at[j] = from_float<T>(made.v);
  }
  if constexpr (rule != Rule::zplus) {
    store_vector(m.u + at, u);
  }
  if constexpr (rule != Rule::epsilon) {
    store_vector(m.v + at, v);
  }
}

template <Rule rule, class T, int V>
__global__ void __launch_bounds__(kThreads, kBlocksEach) sweep(Maps<T> m, int64_t count) {
  const int64_t threads = int64_t{gridDim.x} * kThreads, whole = count / V * V;
  FASTLRP_ROLLED
  for (int64_t at = item_number() * V; at < whole; at += threads * V) {
    sweep_at<rule, T, V>(m, at);
  }
  if (V > 1 && item_number() < count - whole) {
    sweep_at<rule, T, 1>(m, whole + item_number());
  }
}

template <class T>
struct Maxima {
  T* pooled;
  int64_t* index;
  int64_t C, inputs, outputs;
  bool channels_last, sweeps;  // sweeps: also the coefficients of the input's part around each window
  Axis axes[3];
};

// One thread for V neighbours of an output position.
template <Rule rule, class T, int V>
__global__ void __launch_bounds__(kThreads, kBlocksEach)
    maximize(Maps<T> m, Maxima<T> p, MapOrder order, int64_t first_sample) {
  using A = Accumulate<T>;
  const int64_t size = p.C * p.outputs, item = item_number(), b = first_sample + blockIdx.z;
  if (item * V >= size) {
    return;
  }
  const Spot spot = order.at(static_cast<uint32_t>(item));
  const Channel channel = channel_of(spot.channel, p.C, p.inputs, p.channels_last);
  const Axis &z = p.axes[0], &y = p.axes[1], &x = p.axes[2];
  const int64_t sample = b * p.C * p.inputs;
  A most[V];
  int32_t winner[V];
  for (int j = 0; j < V; ++j) {
    most[j] = static_cast<A>(-INFINITY);
    winner[j] = -1;
  }
  const auto compare = [&](uint32_t position, int32_t, int32_t, int32_t) {
    const Vector<T, V> loaded = load_vector<T, V>(m.z + sample + channel.at(position));
    for (int j = 0; j < V; ++j) {
      const A here = rectified(to_float(loaded.at[j]));
      if (here > most[j] || here != here) {
        most[j] = here;
        winner[j] = static_cast<int32_t>(position);
      }
    }
  };
  over_places(z.inputs_of(spot.z), y.inputs_of(spot.y), x.inputs_of(spot.x), y.inputs, x.inputs, compare);
  const int64_t nowhere = (z.first_of(spot.z) * y.inputs + y.first_of(spot.y)) * x.inputs + x.first_of(spot.x);
  Vector<T, V> pooled;
  Vector<int64_t, V> index;
  for (int j = 0; j < V; ++j) {
    pooled.at[j] = from_float<T>(most[j]);
    index.at[j] = winner[j] < 0 ? nowhere : winner[j];
  }
  store_vector(p.pooled + b * size + item * V, pooled);
  store_vector(p.index + b * size + item * V, index);
  if (p.sweeps) {
    const auto sweep_part = [&](uint32_t position, int32_t, int32_t, int32_t) {
      sweep_at<rule, T, V>(m, sample + channel.at(position));
    };
    over_places(z.part_of(spot.z), y.part_of(spot.y), x.part_of(spot.x), y.inputs, x.inputs, sweep_part);
  }
}

template <class T>
bool is_wide(const Maps<T>& m) {
  return is_aligned(m.z) && is_aligned(m.positive) && is_aligned(m.negative) && is_aligned(m.factor) &&
         is_aligned(m.u) && is_aligned(m.v);
}

// run(the rule and the width as types)
template <Rule rule>
using Chosen = std::integral_constant<Rule, rule>;
template <int V>
using Width = std::integral_constant<int, V>;

template <class T, class Run>
void choose(Rule rule, bool wide, Run&& run) {
  const auto with_rule = [&](auto chosen) { wide ? run(chosen, Width<kVector<T>>{}) : run(chosen, Width<1>{}); };
  switch (rule) {
    case Rule::epsilon:
      return with_rule(Chosen<Rule::epsilon>{});
    case Rule::zplus:
      return with_rule(Chosen<Rule::zplus>{});
    case Rule::gamma:
      return with_rule(Chosen<Rule::gamma>{});
  }
}

template <class T>
void sweep_all(Rule rule, const Maps<T>& m, int64_t count, Stream stream) {
  choose<T>(rule, is_wide(m), [&]<Rule chosen, int V>(Chosen<chosen>, Width<V>) {
    const unsigned blocks = blocks_for((count + V - 1) / V, kThreads, kBlocks);
    launch(&sweep<chosen, T, V>, dim3(blocks), dim3(kThreads), 0, stream, m, count);
  });
}

}  // namespace

template <class T>
void elementwise_coefficients(Rule rule, const Coefficients<T>& p, Stream stream) {
  sweep_all(rule, Maps<T>{p.z, p.positive, p.negative, p.factor, p.u, p.v, p.alpha, p.epsilon, false}, p.count, stream);
}

template <class T>
void elementwise_pooled_coefficients(Rule rule, const PooledCoefficients<T>& p, Stream stream) {
  const Maps<T> maps{p.z, p.positive, p.negative, nullptr, p.u, p.v, p.alpha, p.epsilon, true};
  const Axis &z = p.axes[0], &y = p.axes[1], &x = p.axes[2];
  const int64_t inputs = int64_t{z.inputs} * y.inputs * x.inputs, outputs = int64_t{z.outputs} * y.outputs * x.outputs;
  if (p.B == 0 || p.C == 0) {
    return;
  }
  const bool sweeps = outputs > 0 && int64_t{z.stride} * y.stride <= kLargestPart &&
                      int64_t{z.stride} * y.stride * x.stride <= kLargestPart;
  if (!sweeps) {
    sweep_all(rule, maps, p.B * p.C * inputs, stream);
  }
  if (outputs == 0) {
    return;
  }
  const Maxima<T> maxima{p.pooled, p.index, p.C, inputs, outputs, p.channels_last, sweeps, {z, y, x}};
  const bool wide =
      is_wide(maps) && is_aligned(p.pooled) && is_aligned(p.index) && p.channels_last && p.C % kVector<T> == 0;
  choose<T>(rule, wide, [&]<Rule chosen, int V>(Chosen<chosen>, Width<V>) {
    const MapOrder order(p.C, z.outputs, y.outputs, x.outputs, V, p.channels_last);
    for (int64_t first = 0; first < p.B; first += kGridYZ) {
      const dim3 grid(blocks_for(p.C * outputs / V, kThreads), 1,
                      static_cast<unsigned>(std::min(p.B - first, kGridYZ)));
      launch(&maximize<chosen, T, V>, grid, dim3(kThreads), 0, stream, maps, maxima, order, first);
    }
  });
}

#define FASTLRP_ELEMENTWISE(T)                                                     \
  template void elementwise_coefficients<T>(Rule, const Coefficients<T>&, Stream); \
  template void elementwise_pooled_coefficients<T>(Rule, const PooledCoefficients<T>&, Stream);
FASTLRP_ELEMENTWISE(float)
FASTLRP_ELEMENTWISE(double)
FASTLRP_ELEMENTWISE(__half)
FASTLRP_ELEMENTWISE(__nv_bfloat16)
#undef FASTLRP_ELEMENTWISE

}  // namespace fastlrp::cuda
