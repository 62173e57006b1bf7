#include "pool.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "../common/parallel.h"

namespace fastlrp::cpu {
namespace {

// Below this many written elements a second thread costs more than it saves (2 cores, AVX-512 Xeon).
constexpr int64_t kGrain = 32768;
// With channels innermost a task takes all of them, or, where samples and targets alone are too few to share out, a
// strip: 256 bytes of float32 per position.
constexpr int64_t kStrip = 64;
constexpr int64_t kEnoughTasks = 16;

[[noreturn]] void out_of_range(int64_t index, int64_t inputs) {
  throw std::out_of_range("pool_max_relevance: index must be in [0, " + std::to_string(inputs) +
                          "), the flattened input_size, got " + std::to_string(index) +
                          "; pass the indices that max_pool returned for an input of this size");
}

template <class T, bool has_scale>
void scatter_plane(const T* relevance, const int64_t* index, const T* scale, T* out, int64_t outputs, int64_t inputs) {
  std::fill(out, out + inputs, T(0));
  for (int64_t o = 0; o < outputs; ++o) {
    const int64_t i = index[o];
    // As unsigned, a negative index is too large as well.
    if (static_cast<uint64_t>(i) >= static_cast<uint64_t>(inputs)) {
      out_of_range(i, inputs);
    }
    out[i] += has_scale ? relevance[o] * scale[o] : relevance[o];
  }
}

template <class T, bool has_scale>
void scatter_strip(const T* relevance, const int64_t* index, const T* scale, T* out, const PoolMax<T>& p,
                   int64_t channels) {
  for (int64_t i = 0; i < p.inputs; ++i) {
    std::fill(out + i * p.C, out + i * p.C + channels, T(0));
  }
  for (int64_t o = 0; o < p.outputs; ++o) {
    const int64_t row = o * p.C;
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t i = index[row + c];
      if (static_cast<uint64_t>(i) >= static_cast<uint64_t>(p.inputs)) {
        out_of_range(i, p.inputs);
      }
      out[i * p.C + c] += has_scale ? relevance[row + c] * scale[row + c] : relevance[row + c];
    }
  }
}

int64_t tasks_per_grain(int64_t elements_per_task) { return std::max<int64_t>(1, kGrain / (elements_per_task + 1)); }

}  // namespace

template <class T>
void pool_max_relevance(const PoolMax<T>& p) {
  // Targets innermost, so that a plane's indices stay in cache for all of them.
  parallel_for(p.B * p.C * p.K, tasks_per_grain(p.inputs), [&p](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t k = task % p.K, plane = task / p.K;  // plane = b * C + c
      const int64_t c = plane % p.C, b = plane / p.C;
      const T* relevance = p.relevance + b * p.stride_b + k * p.stride_k + c * p.stride_c;
      const int64_t* index = p.index + plane * p.outputs;
      T* out = p.out + ((b * p.K + k) * p.C + c) * p.inputs;
      if (p.scale != nullptr) {
        scatter_plane<T, true>(relevance, index, p.scale + plane * p.outputs, out, p.outputs, p.inputs);
      } else {
        scatter_plane<T, false>(relevance, index, nullptr, out, p.outputs, p.inputs);
      }
    }
  });
}

template <class T>
void pool_max_relevance_channels_last(const PoolMax<T>& p) {
  const int64_t width = std::max<int64_t>(1, p.B * p.K < kEnoughTasks ? std::min(p.C, kStrip) : p.C);
  const int64_t strips = (p.C + width - 1) / width;
  parallel_for(p.B * strips * p.K, tasks_per_grain(p.inputs * width), [&p, strips, width](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t k = task % p.K, strip = task / p.K;
      const int64_t c = strip % strips * width, b = strip / strips;
      const T* relevance = p.relevance + b * p.stride_b + k * p.stride_k + c;
      const int64_t cache = b * p.outputs * p.C + c;
      T* out = p.out + (b * p.K + k) * p.inputs * p.C + c;
      const int64_t channels = std::min(width, p.C - c);
      if (p.scale != nullptr) {
        scatter_strip<T, true>(relevance, p.index + cache, p.scale + cache, out, p, channels);
      } else {
        scatter_strip<T, false>(relevance, p.index + cache, nullptr, out, p, channels);
      }
    }
  });
}

template void pool_max_relevance<float>(const PoolMax<float>&);
template void pool_max_relevance<double>(const PoolMax<double>&);
template void pool_max_relevance_channels_last<float>(const PoolMax<float>&);
template void pool_max_relevance_channels_last<double>(const PoolMax<double>&);

}  // namespace fastlrp::cpu
