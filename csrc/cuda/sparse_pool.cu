// Which rows the inputs of a pool take from.
//
// A max-pool: a warp takes an input position and 32 channels, a lane each, and asks the outputs whose windows span the
// position who won them. An average pool: a thread takes a wanted entry and looks its channel up in the lists of these
// outputs. Either is done twice, to count and to write, which reads the index and the lists once more but keeps nothing
// per neuron in between.

#include "../common/maps.h"
#include "../common/pattern.h"
#include "block_scan.h"
#include "sparse_pool.h"

namespace fastlrp::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kBlocks = 4;  // on a multiprocessor: left alone, ptxas spills registers for more

// f(output) for the outputs, places in the sample, whose windows read input `place`; ascending.
template <class Body>
__device__ __forceinline__ void over_outputs(const PoolWindow& w, uint32_t place, Body&& body) {
  const uint32_t row = w.size_x.divide(place), z = w.size_y.divide(row);
  const uint32_t y = row - z * w.size_y.value, x = place - row * w.size_x.value;
  over_places(w.axes[0].outputs_of(z), w.axes[1].outputs_of(y), w.axes[2].outputs_of(x), w.axes[1].outputs,
              w.axes[2].outputs, [&](uint32_t output, int32_t, int32_t, int32_t) { body(output); });
}

__device__ __forceinline__ int64_t row_at(const Pattern& pattern, int64_t position, int32_t channel) {
  return entry_of(pattern.channels, pattern.offsets[position], pattern.offsets[position + 1], channel);
}

// take(row) for the rows that a neuron of a max-pool's input won; ascending.
template <class Take>
__device__ __forceinline__ void over_won(const Winners& p, int64_t sample, uint32_t place, int32_t channel,
                                         Take&& take) {
  const int64_t first = sample * p.window.outputs;
  over_outputs(p.window, place, [&](uint32_t output) {
    if (p.index.at(sample, channel, output) == place) {
      const int64_t row = row_at(p.pooled, first + output, channel);
      if (row >= 0) {
        take(row);
      }
    }
  });
}

// A block's y is a sample: no division of 64 bits.
template <bool write>
__global__ void __launch_bounds__(kThreads, kBlocks) winners_kernel(const __grid_constant__ Winners p, Lists lists) {
  const int lane = threadIdx.x % kWarp;
  const int64_t inputs = p.window.inputs, items = inputs * p.width.value, step = int64_t{gridDim.x} * kWarps;
  for (int64_t sample = blockIdx.y; sample < p.batch; sample += gridDim.y) {
    for (int64_t item = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp; item < items; item += step) {
      const uint32_t place = p.width.divide(static_cast<uint32_t>(item));
      const int32_t channel = static_cast<int32_t>(item - int64_t{place} * p.width.value) * kWarp + lane;
      const int64_t list = sample * items + item;
      int count = 0;
      if (channel < p.channels) {
        over_won(p, sample, place, channel, [&](int64_t) { ++count; });
      }
      const uint32_t won = __ballot_sync(kAllLanes, count > 0);
      if constexpr (write) {
        const int64_t first = p.entries[list];
        if (lane == 0 && channel == 0) {
          lists.offsets[sample * inputs + place] = first;
        }
        int64_t row = p.rows[list] + warp_scan(count, lane);
        if (count > 0) {
          const int64_t entry = first + __popc(won & lanes_below(lane));
          lists.channels[entry] = channel;
          lists.starts[entry] = row;
          over_won(p, sample, place, channel, [&](int64_t taken) { lists.rows[row++] = taken; });
        }
      } else {
        const int rows = warp_sum(count);
        if (lane == 0) {
          p.entries[list] = __popc(won);
          p.rows[list] = rows;
        }
      }
    }
  }
  if (write && blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0) {
    const int64_t entries = p.entries[p.batch * items];
    lists.offsets[p.batch * inputs] = entries;
    lists.starts[entries] = p.rows[p.batch * items];
  }
}

template <bool write>
__global__ void __launch_bounds__(kThreads, kBlocks) windows_kernel(const __grid_constant__ Windows p, Lists lists) {
  const int64_t inputs = p.window.inputs;
  const int64_t step = int64_t{gridDim.x} * kThreads, *starts = p.rows == nullptr ? p.kept : p.rows;
  for (int64_t sample = blockIdx.y; sample < p.batch; sample += gridDim.y) {
    const int64_t* offsets = p.wanted.offsets + sample * inputs;
    const int64_t end = offsets[inputs];
    for (int64_t e = offsets[0] + int64_t{blockIdx.x} * kThreads + threadIdx.x; e < end; e += step) {
      const int32_t channel = p.wanted.channels[e];
      const uint32_t place = static_cast<uint32_t>(position_of(offsets, inputs, e));
      int64_t count = 0, to = 0;
      if constexpr (write) {
        to = starts[e];
      }
      over_outputs(p.window, place, [&](uint32_t output) {
        const int64_t row = row_at(p.pooled, sample * p.window.outputs + output, channel);
        if (row >= 0) {
          if constexpr (write) {
            lists.rows[to + count] = row;
          }
          ++count;
        }
      });
      if constexpr (write) {
        if (count > 0 && lists.channels != nullptr) {
          lists.channels[p.kept[e]] = channel;
        }
        if (count > 0 && lists.starts != nullptr) {
          lists.starts[p.kept[e]] = to;
        }
      } else {
        p.kept[e] = count > 0;
        if (p.rows != nullptr) {
          p.rows[e] = count;
        }
      }
    }
  }
}

__global__ void __launch_bounds__(kThreads) window_offsets_kernel(const __grid_constant__ Windows p, Lists lists) {
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (int64_t q = int64_t{blockIdx.x} * kThreads + threadIdx.x; q <= p.wanted.positions; q += step) {
    lists.offsets[q] = p.kept[p.wanted.offsets[q]];
    if (q == p.wanted.positions && lists.starts != nullptr) {
      lists.starts[p.kept[p.count]] = p.rows[p.count];
    }
  }
}

// `items` in all samples together.
dim3 sample_grid(int64_t items, int64_t batch, int64_t each) {
  return {blocks_for(batch == 0 ? 0 : (items + batch - 1) / batch, each), static_cast<unsigned>(least(batch, kGridYZ)),
          1};
}

}  // namespace

PoolWindow::PoolWindow(const Window& w)
    : size_y(w.in[1] > 0 ? w.in[1] : 1),
      size_x(w.in[2] > 0 ? w.in[2] : 1),
      inputs(int64_t{w.in[0]} * w.in[1] * w.in[2]),
      outputs(int64_t{w.out[0]} * w.out[1] * w.out[2]) {
  for (int axis = 0; axis < 3; ++axis) {
    axes[axis] = {w.in[axis], w.out[axis], w.taps[axis], w.stride[axis], w.padding[axis], w.dilation[axis]};
  }
}

void count_winners(const Winners& p, Stream stream) {
  launch(winners_kernel<false>, sample_grid(p.items(), p.batch, kWarps), kThreads, 0, stream, p, Lists{});
}

void list_winners(const Winners& p, const Lists& lists, Stream stream) {
  launch(winners_kernel<true>, sample_grid(p.items(), p.batch, kWarps), kThreads, 0, stream, p, lists);
}

void count_windows(const Windows& p, Stream stream) {
  launch(windows_kernel<false>, sample_grid(p.count, p.batch, kThreads), kThreads, 0, stream, p, Lists{});
}

void list_windows(const Windows& p, const Lists& lists, Stream stream) {
  launch(windows_kernel<true>, sample_grid(p.count, p.batch, kThreads), kThreads, 0, stream, p, lists);
  if (lists.offsets != nullptr) {
    launch(window_offsets_kernel, blocks_for(p.wanted.positions + 1, kThreads), kThreads, 0, stream, p, lists);
  }
}

}  // namespace fastlrp::cuda
