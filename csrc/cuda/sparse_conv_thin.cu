// Beside sparse_conv.cu: layers with few channels per group, and compact rows to a dense result.

#include "sparse_conv_gather.cuh"

namespace fastlrp::cuda {
namespace {

constexpr int kEach = 4;  // targets of a lane, a warp apart

// c[q, ci, k] as sparse_conv.h has it, one warp for each entry and kEach * 32 targets. A tile would be mostly empty: of
// a depthwise layer's outputs one per tap reaches an input. The lanes look for the taps' entries side by side. Every
// 128 (64) bytes of float32 (16 bits) that are read serve one multiplication per value.
template <class T>
__global__ void __launch_bounds__(kThreads, 2) sparse_conv_entries(const __grid_constant__ Task<T> task) {
  using Sum = Accumulate<T>;
  const SparseConv<T>& p = task.conv;
  const Window& w = p.window;
  const Pattern &leaving = p.leaving, &pattern = p.arriving.pattern;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int32_t taps = w.taps[0] * w.taps[1] * w.taps[2];
  const int64_t outputs = int64_t{w.out[0]} * w.out[1] * w.out[2];
  for (int64_t item = blockIdx.x; item < task.cut.items; item += gridDim.x) {
    const auto q = static_cast<int64_t>(task.cut.target_tiles.divide_wide(item));
    const int64_t first_target = (item - q * task.cut.target_tiles.value) * kEach * kWarp + lane;
    const auto line = static_cast<int64_t>(task.cut.runs.divide_wide(q));
    const auto plane = static_cast<int64_t>(task.cut.rows.divide_wide(line));
    const auto batch = static_cast<int64_t>(task.cut.planes.divide_wide(plane));
    const auto x = static_cast<int32_t>(q - line * w.in[2]), y = static_cast<int32_t>(line - plane * w.in[1]);
    const auto z = static_cast<int32_t>(plane - batch * w.in[0]);
    const int64_t inside = q - batch * (int64_t{w.in[0]} * w.in[1] * w.in[2]);
    for (int64_t entry = leaving.offsets[q] + warp; entry < leaving.offsets[q + 1]; entry += kWarps) {
      const int32_t channel = leaving.channels[entry], group = channel / p.in_channels;
      const int32_t from = group * p.out_channels, in_group = channel - group * p.in_channels;
      Sum sums[kEach] = {};
      for (int32_t begin = 0; begin < taps; begin += kWarp) {
        const int32_t tap = begin + lane;
        int64_t first = 0;
        int32_t count = 0, position = 0;
        if (tap < taps) {
          const int32_t row = tap / w.taps[2];
          const int32_t oz = joined(task, 0, z, row / w.taps[1]), oy = joined(task, 1, y, row % w.taps[1]);
          const int32_t ox = joined(task, 2, x, tap % w.taps[2]);
          if (oz >= 0 && oy >= 0 && ox >= 0) {
            position = (oz * w.out[1] + oy) * w.out[2] + ox;
            const int64_t* offsets = pattern.offsets + batch * outputs + position;
            const int64_t end = offsets[1];
            first = first_not_below(pattern.channels, offsets[0], end, from);
            while (first + count < end && pattern.channels[first + count] < from + p.out_channels) {
              ++count;
            }
          }
        }
        for (unsigned found = __ballot_sync(kAllLanes, count > 0); found != 0; found &= found - 1) {
          const int source = __ffs(static_cast<int>(found)) - 1;
          const int64_t start = __shfl_sync(kAllLanes, first, source);
          const int32_t entries = __shfl_sync(kAllLanes, count, source);
          const int32_t place = __shfl_sync(kAllLanes, position, source);
          for (int32_t e = 0; e < entries; ++e) {
            const int32_t output = pattern.channels[start + e];
            const int64_t at =
                ((int64_t{group} * taps + begin + source) * p.out_channels + output - from) * p.in_channels + in_group;
            const int32_t own_channel = p.scales_leaving ? channel : output;
            const int64_t own_place = p.scales_leaving ? inside : int64_t{place};
            Sum weight = 0;
            for (int j = 0; j < p.product_count; ++j) {
              weight += to_float(p.products[j].weight[at]) *
                        to_float(p.products[j].coefficient.at(batch, own_channel, own_place));
            }
            const T* row = p.arriving.row(start + e);
#pragma unroll
            for (int i = 0; i < kEach; ++i) {
              const int64_t target = first_target + i * kWarp;
              if (target < p.targets) {
                sums[i] += weight * to_float(row[target]);
              }
            }
          }
        }
      }
      Sum factor = 0;
      const T* initial = nullptr;
      if (p.initial.source.values != nullptr) {
        const Rows<T>& source = p.initial.source;
        const int64_t found =
            entry_of(source.pattern.channels, source.pattern.offsets[q], source.pattern.offsets[q + 1], channel);
        if (found >= 0) {
          initial = source.row(found);
          factor = p.initial.factor.data == nullptr ? Sum(1) : to_float(p.initial.factor.at(batch, channel, inside));
        }
      }
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const int64_t target = first_target + i * kWarp;
        if (target < p.targets) {
          const Sum begins = initial == nullptr ? Sum(0) : factor * to_float(initial[target]);
          p.rows[entry * p.row_stride + target] = from_float<T>(begins + sums[i]);
        }
      }
    }
  }
}

// A block turns 64 neighbouring places of the result, channels innermost, of 32 targets: it reads rows along the
// targets and writes along the places.
constexpr int kFoldPlaces = 64;

template <class T>
__global__ void __launch_bounds__(kThreads) sparse_conv_folds(const __grid_constant__ SparseFold<T> p, int64_t items,
                                                              Divisor target_tiles, Divisor tiles, Divisor channels) {
  using Sum = Accumulate<T>;
  Sum* tile = shared_array<Sum, kFoldPlaces*(kWarp + 1), __LINE__>();
  const DenseMap<T>& to = p.dense;
  const Pattern& pattern = p.source.pattern;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const auto rest = static_cast<int64_t>(target_tiles.divide_wide(item));
    const auto batch = static_cast<int64_t>(tiles.divide_wide(rest));
    const int64_t first_target = (item - rest * target_tiles.value) * kWarp;
    const int64_t first = (rest - batch * tiles.value) * kFoldPlaces, left = to.spatial * to.channels - first;
    const int places = left < kFoldPlaces ? static_cast<int>(left) : kFoldPlaces;
    __syncthreads();
    for (int i = warp; i < places; i += kWarps) {
      const auto position = static_cast<int64_t>(channels.divide_wide(first + i));
      const auto channel = static_cast<int32_t>(first + i - position * to.channels);
      const int64_t q = batch * to.spatial + position, begin = pattern.offsets[q], end = pattern.offsets[q + 1];
      Sum sum = 0;
      for (int32_t fold = 0; fold < p.folds; ++fold) {
        const int64_t entry =
            entry_of(pattern.channels, begin, end, static_cast<int32_t>(fold * to.channels + channel));
        if (entry >= 0 && first_target + lane < to.targets) {
          const Sum factor = p.has_factors ? to_float(p.factors[fold].at(batch, channel, position)) : Sum(1);
          sum += factor * to_float(p.source.row(entry)[first_target + lane]);
        }
      }
      tile[i * (kWarp + 1) + lane] = sum;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < kFoldPlaces * kWarp; i += kThreads) {
      const int place = i % kFoldPlaces, target = i / kFoldPlaces;
      if (place < places && first_target + target < to.targets) {
        const auto position = static_cast<int64_t>(channels.divide_wide(first + place));
        const int64_t channel = first + place - position * to.channels;
        to.data[batch * to.batch_stride + (first_target + target) * to.target_stride + channel * to.channel_stride +
                position * to.position_stride] = from_float<T>(tile[place * (kWarp + 1) + target]);
      }
    }
  }
}

int64_t ceil_of(int64_t count, int64_t unit) { return (count + unit - 1) / unit; }

}  // namespace

template <class T>
void launch_thin(const Task<T>& given, Stream stream) {
  Task<T> task = given;
  const Window& w = task.conv.window;
  const int64_t targets = ceil_of(task.conv.targets, kEach * kWarp);
  task.cut.items = task.conv.leaving.positions * targets;
  task.cut.target_tiles = Divisor(targets);
  task.cut.runs = Divisor(w.in[2]), task.cut.rows = Divisor(w.in[1]), task.cut.planes = Divisor(w.in[0]);
  launch(&sparse_conv_entries<T>, dim3(blocks_for(task.cut.items, 1)), dim3(kThreads), 0, stream, task);
}

template <class T>
void sparse_conv_fold(const SparseFold<T>& p, Stream stream) {
  const DenseMap<T>& to = p.dense;
  const int64_t targets = ceil_of(to.targets, kWarp), tiles = ceil_of(to.spatial * to.channels, kFoldPlaces);
  const int64_t items = to.batch * tiles * targets;
  if (items > 0) {
    launch(&sparse_conv_folds<T>, dim3(blocks_for(items, 1)), dim3(kThreads), 0, stream, p, items, Divisor(targets),
           Divisor(tiles), Divisor(to.channels));
  }
}

template void launch_thin<float>(const Task<float>&, Stream);
template void launch_thin<double>(const Task<double>&, Stream);
template void launch_thin<__half>(const Task<__half>&, Stream);
template void launch_thin<__nv_bfloat16>(const Task<__nv_bfloat16>&, Stream);
template void sparse_conv_fold<float>(const SparseFold<float>&, Stream);
template void sparse_conv_fold<double>(const SparseFold<double>&, Stream);
template void sparse_conv_fold<__half>(const SparseFold<__half>&, Stream);
template void sparse_conv_fold<__nv_bfloat16>(const SparseFold<__nv_bfloat16>&, Stream);

}  // namespace fastlrp::cuda
