#include "pool.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "../common/bf16.h"
#include "../common/isa.h"
#include "../common/parallel.h"
#include "../common/planes.h"
#include "pool_tasks.h"

namespace fastlrp::cpu {
namespace {

// With channels innermost a task takes all of them, or, where samples and targets alone are too few to share out, a
// strip: 256 bytes of float32 per position.
constexpr int64_t kStrip = 64;

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

// Where there are no windows nothing arrives, and the pointers to what would arrive may be null.
// The rows below work on whatever lies innermost in memory, "lanes": all channels, or kPlanes planes laid side by side.

// One row of the input of an average: its windows summed over all axes but the last, then along the last.
template <class T, bool has_scale>
FASTLRP_INLINE void average_row(const PoolAvg<T>& p, int64_t z, int64_t y, int64_t lanes, const T* __restrict relevance,
                                const T* __restrict scale, T* __restrict sums, T* __restrict out) {
  const Windows &wz = p.axes[0], &wy = p.axes[1], &wx = p.axes[2];
  const int64_t length = wx.outputs * lanes;
  for (int64_t i = 0; i < length; ++i) {
    sums[i] = T(0);
  }
  for (int64_t oz = wz.first[z]; oz < wz.first[z] + wz.count[z]; ++oz) {
    for (int64_t oy = wy.first[y]; oy < wy.first[y] + wy.count[y]; ++oy) {
      const int64_t row = (oz * wy.outputs + oy) * length;
      const T weight = static_cast<T>(wz.weight[oz] * wy.weight[oy] * p.factor);
      for (int64_t i = 0; i < length; ++i) {
        sums[i] += weight * (has_scale ? relevance[row + i] * scale[row + i] : relevance[row + i]);
      }
    }
  }
  for (int64_t o = 0; o < wx.outputs; ++o) {
    const T weight = static_cast<T>(wx.weight[o]);
    for (int64_t lane = 0; lane < lanes; ++lane) {
      sums[o * lanes + lane] *= weight;
    }
  }
  for (int64_t x = 0; x < wx.inputs; ++x, out += lanes) {
    const T* from = sums + wx.first[x] * lanes;
    for (int64_t lane = 0; lane < lanes; ++lane) {
      out[lane] = T(0);
    }
    for (int64_t n = wx.count[x]; n > 0; --n, from += lanes) {
      for (int64_t lane = 0; lane < lanes; ++lane) {
        out[lane] += from[lane];
      }
    }
  }
}

FASTLRP_INLINE bool same_windows(const Windows& w, int64_t i, int64_t j) {
  return w.first[i] == w.first[j] && w.count[i] == w.count[j];
}

// Rows of the input; one that stands in the same windows as the row before it is a copy.
template <class T, bool has_scale>
struct AverageChannelsLast {
  FASTLRP_INLINE static void run(const PoolAvg<T>* p, T* sums, int64_t begin, int64_t end) {
    const Windows& wy = p->axes[1];
    const int64_t rows = int64_t{p->axes[0].inputs} * wy.inputs, length = p->axes[2].inputs * p->C;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t k = task / rows % p->K, b = task / rows / p->K;
      const int64_t z = task % rows / wy.inputs, y = task % wy.inputs;
      T* out = p->out + task * length;
      if (task > begin && y > 0 && same_windows(wy, y, y - 1)) {
        std::copy(out - length, out, out);
      } else {
        average_row<T, has_scale>(*p, z, y, p->C, p->relevance + b * p->stride_b + k * p->stride_k,
                                  has_scale ? p->scale + b * outputs_of(p->axes) * p->C : nullptr, sums, out);
      }
    }
  }
};

// Groups of kPlanes channels for one target.
template <class T>
struct AverageGroups {
  struct Scratch {
    std::vector<T> relevance, sums, row;
    explicit Scratch(const Windows* axes)
        : relevance(outputs_of(axes) * kPlanes), sums(axes[2].outputs * kPlanes), row(axes[2].inputs * kPlanes) {}
  };

  FASTLRP_INLINE static void run(const PoolAvg<T>* p, Scratch* s, int64_t begin, int64_t end) {
    const Windows &wz = p->axes[0], &wy = p->axes[1], &wx = p->axes[2];
    const int64_t inputs = inputs_of(p->axes), outputs = outputs_of(p->axes), groups = groups_of(p->C);
    T *relevance = s->relevance.data(), *sums = s->sums.data(), *row = s->row.data();
    for (int64_t task = begin; task < end; ++task) {
      const int64_t c = task % groups * kPlanes, planes = std::min(kPlanes, p->C - c);
      const int64_t k = task / groups % p->K, b = task / groups / p->K;
      pack_planes(p->relevance + b * p->stride_b + k * p->stride_k + c * p->stride_c, p->stride_c,
                  p->scale == nullptr ? nullptr : p->scale + (b * p->C + c) * outputs, outputs, planes, outputs,
                  relevance);
      T* out = p->out + ((b * p->K + k) * p->C + c) * inputs;
      for (int64_t z = 0; z < wz.inputs; ++z) {
        for (int64_t y = 0; y < wy.inputs; ++y, out += wx.inputs) {
          if (y == 0 || !same_windows(wy, y, y - 1)) {
            average_row<T, false>(*p, z, y, kPlanes, relevance, nullptr, sums, row);
          }
          unpack_planes(row, planes, wx.inputs, out, inputs);
        }
      }
    }
  }
};

template <class T>
void scatter_planes(const PoolMax<T>& p) {
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
void scatter_strips(const PoolMax<T>& p) {
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

}  // namespace

template <class T>
void pool_max_relevance(const PoolMax<T>& p) {
  if (p.outputs == 0) {
    return clear(p.out, p.B * p.K * p.C * p.inputs);
  }
  p.channels_last ? scatter_strips(p) : scatter_planes(p);
}

template <class T>
void pool_avg_relevance(const PoolAvg<T>& p) {
  const int64_t size = p.B * p.K * p.C * inputs_of(p.axes);
  if (size == 0 || outputs_of(p.axes) == 0) {
    return clear(p.out, size);
  }
  const int64_t rows = int64_t{p.axes[0].inputs} * p.axes[1].inputs;
  if (!p.channels_last) {
    const int64_t grain = tasks_per_grain(inputs_of(p.axes) * kPlanes);
    parallel_for(p.B * p.K * groups_of(p.C), grain, [&p](int64_t begin, int64_t end) {
      typename AverageGroups<T>::Scratch scratch(p.axes);
      run_best<AverageGroups<T>>(&p, &scratch, begin, end);
    });
    return;
  }
  parallel_for(p.B * p.K * rows, tasks_per_grain(p.axes[2].inputs * p.C), [&p](int64_t begin, int64_t end) {
    std::vector<T> sums(p.axes[2].outputs * p.C);
    p.scale != nullptr ? run_best<AverageChannelsLast<T, true>>(&p, sums.data(), begin, end)
                       : run_best<AverageChannelsLast<T, false>>(&p, sums.data(), begin, end);
  });
}

template void pool_max_relevance<float>(const PoolMax<float>&);
template void pool_max_relevance<double>(const PoolMax<double>&);
template void pool_max_relevance<Bf16>(const PoolMax<Bf16>&);
template void pool_avg_relevance<float>(const PoolAvg<float>&);
template void pool_avg_relevance<double>(const PoolAvg<double>&);

}  // namespace fastlrp::cpu
