#include <algorithm>
#include <vector>

#include "../common/isa.h"
#include "../common/parallel.h"
#include "../common/planes.h"
#include "pool.h"
#include "pool_tasks.h"

namespace fastlrp::cpu {
namespace {

// The rows below work on whatever lies innermost in memory, "lanes": all channels, or kPlanes planes laid side by side.

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

}  // namespace

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

template void pool_ties_relevance<float>(const PoolTies<float>&);
template void pool_ties_relevance<double>(const PoolTies<double>&);

}  // namespace fastlrp::cpu
