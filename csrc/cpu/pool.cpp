#include "pool.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "../common/bf16.h"
#include "../common/isa.h"
#include "../common/parallel.h"
#include "../common/planes.h"

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

// Where there are no windows nothing arrives, and the pointers to what would arrive may be null.
template <class T>
void clear(T* out, int64_t size) {
  std::fill(out, out + size, T(0));
}

int64_t tasks_per_grain(int64_t elements_per_task) { return std::max<int64_t>(1, kGrain / (elements_per_task + 1)); }

// The rows below work on whatever lies innermost in memory, "lanes": all channels, or kPlanes planes laid side by side.

int64_t groups_of(int64_t channels) { return (channels + kPlanes - 1) / kPlanes; }
int64_t inputs_of(const Windows* axes) { return int64_t{axes[0].inputs} * axes[1].inputs * axes[2].inputs; }
int64_t outputs_of(const Windows* axes) { return int64_t{axes[0].outputs} * axes[1].outputs * axes[2].outputs; }

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

// For one row of windows: how many inputs of each equal its maximum, and the share of one. Tensors are one sample's.
template <class T>
FASTLRP_INLINE void share_row(const Windows* axes, int64_t oz, int64_t oy, int64_t lanes, const T* input,
                              const T* __restrict output, const T* scale, T* __restrict share) {
  const Windows &wz = axes[0], &wy = axes[1], &wx = axes[2];
  const int64_t row = (oz * wy.outputs + oy) * wx.outputs * lanes;
  for (int64_t o = 0, at = row; o < wx.outputs; ++o, at += lanes) {
    for (int64_t lane = 0; lane < lanes; ++lane) {
      share[at + lane] = T(0);
    }
    for (int64_t jz = 0; jz < wz.taps[oz]; ++jz) {
      for (int64_t jy = 0; jy < wy.taps[oy]; ++jy) {
        const int64_t z = wz.begin[oz] + jz * wz.dilation, y = wy.begin[oy] + jy * wy.dilation;
        const T* __restrict entry = input + ((z * wy.inputs + y) * wx.inputs + wx.begin[o]) * lanes;
        for (int64_t jx = 0; jx < wx.taps[o]; ++jx) {
          for (int64_t lane = 0; lane < lanes; ++lane) {
            share[at + lane] += entry[jx * wx.dilation * lanes + lane] == output[at + lane] ? T(1) : T(0);
          }
        }
      }
    }
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const T winners = share[at + lane] > T(0) ? share[at + lane] : T(1);
      share[at + lane] = (scale == nullptr ? T(1) : scale[at + lane]) / winners;
    }
  }
}

// The inputs [begin, end) of one row. Tensors are one sample's and one target's; out starts at `begin`.
template <class T>
FASTLRP_INLINE void tie_row(const Windows* axes, int64_t z, int64_t y, int64_t begin, int64_t end, int64_t lanes,
                            const T* __restrict relevance, const T* __restrict input, const T* __restrict output,
                            const T* __restrict share, T* __restrict out) {
  const Windows &wz = axes[0], &wy = axes[1], &wx = axes[2];
  const T* entry = input + ((z * wy.inputs + y) * wx.inputs + begin) * lanes;
  for (int64_t x = begin; x < end; ++x, entry += lanes, out += lanes) {
    for (int64_t lane = 0; lane < lanes; ++lane) {
      out[lane] = T(0);
    }
    for (int64_t jz = 0; jz < wz.count[z]; ++jz) {
      for (int64_t jy = 0; jy < wy.count[y]; ++jy) {
        const int64_t row = (wz.first[z] + jz * wz.step) * wy.outputs + wy.first[y] + jy * wy.step;
        for (int64_t jx = 0; jx < wx.count[x]; ++jx) {
          const int64_t o = (row * wx.outputs + wx.first[x] + jx * wx.step) * lanes;
          for (int64_t lane = 0; lane < lanes; ++lane) {
            const T given = relevance[o + lane] * share[o + lane];
            out[lane] += entry[lane] == output[o + lane] ? given : T(0);
          }
        }
      }
    }
  }
}

template <class T>
struct ShareChannelsLast {
  FASTLRP_INLINE static void run(const PoolTies<T>* p, T* share, int64_t begin, int64_t end) {
    const int64_t rows = int64_t{p->axes[0].outputs} * p->axes[1].outputs;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / rows, oz = task % rows / p->axes[1].outputs, oy = task % p->axes[1].outputs;
      const int64_t windows = b * outputs_of(p->axes) * p->C;
      share_row(p->axes, oz, oy, p->C, p->input + b * inputs_of(p->axes) * p->C, p->output + windows,
                p->scale == nullptr ? nullptr : p->scale + windows, share + windows);
    }
  }
};

// Rows of the input, a part of each for a block of targets while what it needs of the caches is near: 8 KiB per tensor.
constexpr int64_t kTiePart = 2048;

template <class T>
struct TieChannelsLast {
  FASTLRP_INLINE static void run(const PoolTies<T>* p, const T* share, int64_t block, int64_t begin, int64_t end) {
    const Windows& wy = p->axes[1];
    const int64_t rows = int64_t{p->axes[0].inputs} * wy.inputs, blocks = (p->K + block - 1) / block;
    const int64_t windows = outputs_of(p->axes) * p->C, width = p->axes[2].inputs;
    const int64_t step = std::max<int64_t>(1, kTiePart / p->C);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t row = task / blocks % rows, b = task / blocks / rows, first = task % blocks * block;
      for (int64_t x = 0; x < width; x += step) {
        for (int64_t k = first; k < std::min(first + block, p->K); ++k) {
          tie_row(p->axes, row / wy.inputs, row % wy.inputs, x, std::min(x + step, width), p->C,
                  p->relevance + b * p->stride_b + k * p->stride_k, p->input + b * rows * width * p->C,
                  p->output + b * windows, share + b * windows,
                  p->out + (((b * p->K + k) * rows + row) * width + x) * p->C);
        }
      }
    }
  }
};

// Groups of kPlanes channels, each for a block of targets.
template <class T>
struct TieGroups {
  struct Scratch {
    std::vector<T> input, output, share, relevance, row;
    explicit Scratch(const Windows* axes)
        : input(inputs_of(axes) * kPlanes),
          output(outputs_of(axes) * kPlanes),
          share(output.size()),
          relevance(output.size()),
          row(axes[2].inputs * kPlanes) {}
  };

  FASTLRP_INLINE static void run(const PoolTies<T>* p, Scratch* s, int64_t block, int64_t begin, int64_t end) {
    const Windows &wz = p->axes[0], &wy = p->axes[1], &wx = p->axes[2];
    const int64_t inputs = inputs_of(p->axes), outputs = outputs_of(p->axes);
    const int64_t groups = groups_of(p->C), blocks = (p->K + block - 1) / block;
    T *input = s->input.data(), *output = s->output.data(), *share = s->share.data();
    T *relevance = s->relevance.data(), *row = s->row.data();
    const T* none = nullptr;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / blocks / groups, c = task / blocks % groups * kPlanes, first = task % blocks * block;
      const int64_t planes = std::min(kPlanes, p->C - c), plane = b * p->C + c;
      if (task == begin || first == 0) {  // another block of the same channels finds this done
        pack_planes(p->input + plane * inputs, inputs, none, 0, planes, inputs, input);
        pack_planes(p->output + plane * outputs, outputs, none, 0, planes, outputs, output);
        T* scale = p->scale == nullptr ? nullptr : relevance;
        if (scale != nullptr) {
          pack_planes(p->scale + plane * outputs, outputs, none, 0, planes, outputs, scale);
        }
        for (int64_t oz = 0; oz < wz.outputs; ++oz) {
          for (int64_t oy = 0; oy < wy.outputs; ++oy) {
            share_row<T>(p->axes, oz, oy, kPlanes, input, output, scale, share);
          }
        }
      }
      for (int64_t k = first; k < std::min(first + block, p->K); ++k) {
        pack_planes(p->relevance + b * p->stride_b + k * p->stride_k + c * p->stride_c, p->stride_c, none, 0, planes,
                    outputs, relevance);
        T* out = p->out + ((b * p->K + k) * p->C + c) * inputs;
        for (int64_t z = 0; z < wz.inputs; ++z) {
          for (int64_t y = 0; y < wy.inputs; ++y, out += wx.inputs) {
            tie_row(p->axes, z, y, 0, wx.inputs, kPlanes, relevance, input, output, share, row);
            unpack_planes(row, planes, wx.inputs, out, inputs);
          }
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

template <class T>
void pool_ties_relevance(const PoolTies<T>& p) {
  const Windows* axes = p.axes;
  const int64_t size = p.B * p.K * p.C * inputs_of(axes);
  if (size == 0 || outputs_of(axes) == 0) {
    return clear(p.out, size);
  }
  const int64_t tasks = p.B * (p.channels_last ? int64_t{axes[0].inputs} * axes[1].inputs : groups_of(p.C));
  // Targets share what is made of the caches; they go to several threads only where there is too little else to share
  // out.
  const int64_t blocks = std::clamp<int64_t>(kEnoughTasks / tasks, 1, p.K), block = (p.K + blocks - 1) / blocks;
  const int64_t all = tasks * ((p.K + block - 1) / block);
  if (!p.channels_last) {
    const int64_t grain = tasks_per_grain(inputs_of(axes) * kPlanes * block);
    parallel_for(all, grain, [&](int64_t begin, int64_t end) {
      typename TieGroups<T>::Scratch scratch(axes);
      run_best<TieGroups<T>>(&p, &scratch, block, begin, end);
    });
    return;
  }
  std::vector<T> shares(p.B * outputs_of(axes) * p.C);
  T* share = shares.data();
  const int64_t rows = p.B * axes[0].outputs * axes[1].outputs, width = axes[2].inputs * p.C;
  parallel_for(rows, tasks_per_grain(width),
               [&](int64_t begin, int64_t end) { run_best<ShareChannelsLast<T>>(&p, share, begin, end); });
  const T* made = share;
  parallel_for(all, tasks_per_grain(width * block),
               [&](int64_t begin, int64_t end) { run_best<TieChannelsLast<T>>(&p, made, block, begin, end); });
}

template void pool_max_relevance<float>(const PoolMax<float>&);
template void pool_max_relevance<double>(const PoolMax<double>&);
template void pool_max_relevance<Bf16>(const PoolMax<Bf16>&);
template void pool_avg_relevance<float>(const PoolAvg<float>&);
template void pool_avg_relevance<double>(const PoolAvg<double>&);
template void pool_ties_relevance<float>(const PoolTies<float>&);
template void pool_ties_relevance<double>(const PoolTies<double>&);

}  // namespace fastlrp::cpu
