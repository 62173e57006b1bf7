// Relevance through a convolution (or a linear layer: one position) for alive neurons on both sides only, on tensor
// cores:   c[q, ci, k] = sum over terms (t, o) of  (sum over j of weight_j[t][o][ci] coefficient_j[p, o]) x
// arriving[p, o, k]. A term is a tap t and a channel o that is alive at p(q, t).
//
// The coefficient is one number per term, so it goes into the weight while that is gathered, and all products of a rule
// (gamma's two, alpha-beta's two) become ONE product: half the operations of the dense way, which has one per
// coefficient. On the way up, where input and output are exchanged, it is one number per column (scales_leaving).
//
// A block has up to kColumns alive channels of a run of neighbouring input positions (one position where many channels
// are alive, up to kRun where few are) and kTargets targets. Step by step it takes kDepth terms: their rows of values
// come by cp.async two steps ahead, their weights by registers one step ahead; see sparse_conv_gather.cuh. Taps that do
// not join a term with a position are weights of zero, and where no column of a group has a weight among a product's
// terms it is not computed. (Zero times infinity: a row that has overflowed reaches all positions of a run.)
//
// Counted for VGG-16's 3x3 layers, K = 128, float32, per input position, at densities 0.5 (0.25) of both sides:
//   channels                            64            512
//   terms x columns x targets           288 x 32      2304 x 256    x 128
//   MFLOP; dense                        2.4 (0.6); 9  151 (38); 604
//   kB of values read                   82 (32)       2360 to 3540 (590 to 1180), by two or three (one or two) tiles
//   kB of weights read                  74 (37)       4720 (2360)
//   FLOP per byte that a block reads    15 (9)        18 to 21 (11 to 13)
// Of a row of the weight nearly every sector of 32 bytes holds an alive channel, so that its bytes fall with the
// density of the outputs only. What other blocks of the SM have just read of it comes from the first-level cache: their
// taps and channels ascend alike, and the tiles leave some 90 KB of it to them.
//
// Two blocks of 256 threads share an SM, so a thread may have 128 registers: 64 for sums, 8 or 16 for weights on their
// way, 8 for values, 4 for weights that are being multiplied; of shared memory each has about 68 KB.

#include "sparse_conv_columns.cuh"

namespace fastlrp::cuda {
namespace {

constexpr int64_t kMostBlocks = int64_t{1} << 30;
constexpr int64_t kFullGrid = 264;  // blocks below which smaller tiles are better: two for each SM of an H100
constexpr double kFilled = 0.9;     // how full a run's tile should be on average, so that most need one tile only

// Begins to copy one step's rows of values. Behind the last term and the last target there are zeros.
template <class S, class T = typename S::T>
__device__ __forceinline__ void copy_values(const Task<T>& task, int targets, const int64_t* rows, T* to) {
  constexpr int kChunks = S::Tile::kTargets / kVector<T>, kRows = kThreads / kChunks;
  const int chunk = threadIdx.x % kChunks * kVector<T>;
  const int left = targets - chunk, valid = left <= 0 ? 0 : smaller(left, kVector<T>);
  const T* values = task.conv.arriving.values;
#pragma unroll
  for (int first = 0; first < S::Tile::kDepth; first += kRows) {
    const int k = first + static_cast<int>(threadIdx.x) / kChunks;
    if (kRows > S::Tile::kDepth && k >= S::Tile::kDepth) {
      break;
    }
    const int64_t row = rows[k];
    const int count = row >= 0 ? valid : 0;
    const T* from = count > 0 ? values + row + chunk : values;
    T* into = to + k * S::kValueRow + chunk;
    if (task.aligned) {
      copy_16_async(into, from, count * static_cast<int>(sizeof(T)));
    } else {
      for (int i = 0; i < kVector<T>; ++i) {
        into[i] = i < count ? from[i] : from_float<T>(0);
      }
    }
  }
}

// Adds all terms of the places to the sums.
template <class S, int kProducts, class T = typename S::T>
__device__ __forceinline__ void multiply_places(const Task<T>& task, int32_t columns, int32_t total, uint32_t masks,
                                                typename S::Shared& shared,
                                                typename S::Sum (&sums)[S::Tile::kParts][4][4]) {
  using Tile = typename S::Tile;
  using Math = typename S::Math;
  using Mine = Weights<T, Math, Tile, kProducts>;
  const SparseConv<T>& p = task.conv;
  typename S::Operands& operands = shared.operands();
  const int warp = threadIdx.x / kWarp, down = warp / Tile::kWarpsAcross, across = warp % Tile::kWarpsAcross;
  const bool gathers = Mine::column() < columns;
  const int32_t position = gathers ? shared.columns.position[Mine::column()] : 0;
  const int32_t channel = gathers ? shared.columns.channel[Mine::column()] : 0;
  // Steps are counted from one batch before the first, in which that is located.
  const int32_t end = S::kSteps + (total + Tile::kDepth - 1) / Tile::kDepth;
  Ahead<T, S::kBatch, kProducts> ahead;
  Mine weights;
#pragma unroll 1
  for (int32_t step = 0; step < end; ++step) {
    const auto terms_of = [&](int32_t s) -> Terms<T, S::kBatch>& { return shared.terms[s / S::kSteps % 2]; };
    const auto first_of = [](int32_t s) { return s % S::kSteps * Tile::kDepth; };
    const auto is_step = [&](int32_t s) { return s >= S::kSteps && s < end; };
    const int32_t in_batch = step % S::kSteps;
    if (in_batch == 0) {
      ahead.locate(task, shared.places, step * Tile::kDepth + static_cast<int32_t>(threadIdx.x));
    } else if (in_batch == 1) {
      ahead.scale(task, shared.work.run, shared.places);
    } else if (in_batch == 2) {
      ahead.store(task, shared.work.run, shared.work.target, shared.places, shared.work.candidates.step,
                  terms_of(step + S::kSteps));
    }
    wait_copies<kStages - 2>();
    __syncthreads();
    if (is_step(step + 2)) {
      copy_values<S>(task, shared.work.targets, terms_of(step + 2).row + first_of(step + 2),
                     operands.values[(step + 2) % kStages]);
    }
    commit_copies();
    const bool next = gathers && is_step(step + 1);
    const int32_t* rows = terms_of(step + 1).weight[position] + first_of(step + 1);
    if (next) {
      weights.load(p, rows, channel);
    }
    if (is_step(step)) {
      const uint8_t* live = terms_of(step).live + first_of(step) / kByte;
#pragma unroll
      for (int k = 0; k < Tile::kDepth; k += Math::kStep) {
        unsigned positions = live[k / kByte];
        if constexpr (Math::kStep > kByte) {
          positions |= live[k / kByte + 1];
        }
        const uint32_t active = masks & positions * 0x01010101u;
        if (active != 0) {
          Math::template multiply<Tile, S::kValueRow, S::kWeightRow>(
              sums, operands.weights[step % 2] + down * kGroup * S::kWeightRow + k,
              operands.values[step % kStages] + k * S::kValueRow + across * kWarpTargets, active);
        }
      }
    }
    if (next) {
      weights.store(terms_of(step + 1), first_of(step + 1), p.scales_leaving ? shared.columns.coefficient : nullptr,
                    operands.weights[(step + 1) % 2]);
    }
  }
  wait_copies<0>();
}

template <class S, int kProducts>
__global__ void __launch_bounds__(kThreads, 2) sparse_conv_tile(const __grid_constant__ Task<typename S::T> task) {
  using Tile = typename S::Tile;
  using Math = typename S::Math;
  auto& shared = *dynamic_shared<typename S::Shared>();
  const int warp = threadIdx.x / kWarp, down = warp / Tile::kWarpsAcross, across = warp % Tile::kWarpsAcross;
  if (threadIdx.x == 0) {
    shared.work.set(task, task.cut.first + blockIdx.x, Tile::kTargets);
  }
  __syncthreads();
  const int32_t columns = find_columns<S>(task, shared);
  if (columns == 0) {
    return;
  }
  // The positions of each of this warp's groups of columns, a byte each; none where it has no target.
  uint32_t masks = 0;
#pragma unroll
  for (int part = 0; part < Tile::kParts; ++part) {
    const int first = (part * Tile::kWarpsDown + down) * kGroup;
    if (across * kWarpTargets < shared.work.targets && first < columns) {
      const int32_t low = shared.columns.position[first];
      const int32_t high = shared.columns.position[smaller(first + kGroup, columns) - 1];
      masks |= ((2u << high) - (1u << low)) << kByte * part;
    }
  }
  typename S::Sum sums[Tile::kParts][4][4] = {};
  for (int32_t begin = 0; begin < shared.work.candidates.count; begin += kPlaces) {
    const int32_t total = shared.work.candidates.fill(task, shared.work.run, begin, shared.places);
    if (total > 0) {
      multiply_places<S, kProducts>(task, columns, total, masks, shared, sums);
    }
    __syncthreads();
  }
#pragma unroll 1
  for (int pass = 0; pass * S::kPass < columns; ++pass) {
#pragma unroll
    for (int part = 0; part < Tile::kParts; ++part) {
      const int group = part * Tile::kWarpsDown + down;
      if (group / (S::kPass / kGroup) == pass) {
        Math::store(sums[part],
                    shared.sums() + group % (S::kPass / kGroup) * kGroup * S::kSumRow + across * kWarpTargets,
                    S::kSumRow);
      }
    }
    __syncthreads();
    write<S>(task, columns, pass, shared);
    __syncthreads();
  }
}

int64_t ceil_of(int64_t count, int64_t unit) { return (count + unit - 1) / unit; }

template <class S, int kProducts, class T = typename S::T>
void launch_tiles(Task<T>& task, int32_t run, Stream stream) {
  const SparseConv<T>& p = task.conv;
  const Window& w = p.window;
  const int64_t targets = ceil_of(p.targets, S::Tile::kTargets);
  const int64_t columns = ceil_of(int64_t{run} * p.in_channels, S::Tile::kColumns), runs = ceil_of(w.in[2], run);
  Cut& cut = task.cut;
  cut.run = run;
  cut.items = targets * columns * p.groups * runs * w.in[1] * w.in[0] * p.batch;
  cut.target_tiles = Divisor(targets), cut.column_tiles = Divisor(columns), cut.groups = Divisor(p.groups);
  cut.runs = Divisor(runs), cut.rows = Divisor(w.in[1]), cut.planes = Divisor(w.in[0]);
  for (cut.first = 0; cut.first < cut.items; cut.first += kMostBlocks) {
    launch(&sparse_conv_tile<S, kProducts>, dim3(static_cast<unsigned>(smaller(kMostBlocks, cut.items - cut.first))),
           dim3(kThreads), sizeof(typename S::Shared), stream, task);
  }
}

// The tiles of one kind of arithmetic. `narrow` where few columns lie side by side, else by the number of targets. With
// two products' weights on their way the largest tile keeps its registers by taking fewer terms at once.
template <class Math, int kDepth, int kLeastDepth>
struct Shapes {
  template <int kProducts, class T>
  static void launch(Task<T>& task, int32_t run, bool narrow, Stream stream) {
    if (narrow) {
      launch_tiles<Shape<Math, Tile<128, 32, 2 * kDepth>>, kProducts>(task, run, stream);
    } else if (task.conv.targets <= 32) {
      launch_tiles<Shape<Math, Tile<32, 128, kDepth>>, kProducts>(task, run, stream);
    } else if constexpr (std::is_same_v<T, double>) {
      launch_tiles<Shape<Math, Tile<64, 64, 2 * kDepth>>, kProducts>(task, run, stream);
    } else if (task.conv.targets <= 64) {
      launch_tiles<Shape<Math, Tile<64, 128, kDepth>>, kProducts>(task, run, stream);
    } else {
      constexpr int kThis = kProducts == 1 ? kDepth : kLeastDepth;
      launch_tiles<Shape<Math, Tile<128, 128, kThis>>, kProducts>(task, run, stream);
    }
  }
};

template <class T>
struct ShapesOf {
  using type = Shapes<Half<T>, 32, 16>;
};
template <>
struct ShapesOf<double> {
  using type = Shapes<Plain<double>, 8, 8>;
};
template <>
struct ShapesOf<float> {
  using type = Shapes<Tf32, 16, 16>;
};

template <class Kind, class T>
void launch_kind(Task<T>& task, int32_t run, bool narrow, Stream stream) {
  task.conv.product_count == 1 ? Kind::template launch<1>(task, run, narrow, stream)
                               : Kind::template launch<2>(task, run, narrow, stream);
}

template <class T>
bool is_thin(const SparseConv<T>& p) {
  return p.groups > 1 && p.in_channels < kGroup;
}

template <class T>
bool rows_aligned(const Rows<T>& rows) {
  return is_aligned(rows.values) && rows.stride % kVector<T> == 0;
}

}  // namespace

template <class T>
bool writes_dense(const SparseConv<T>& p, int64_t channels) {
  return !is_thin(p) && channels == int64_t{p.groups} * p.in_channels;
}

template <class T>
void sparse_conv_relevance(const SparseConv<T>& p, Stream stream) {
  if (p.targets == 0 || p.leaving_entries == 0) {
    return;
  }
  const Window& w = p.window;
  Task<T> task{p, {}, {}, rows_aligned(p.arriving), rows_aligned(p.initial.source)};
  for (int axis = 0; axis < 3; ++axis) {
    task.axes[axis] = Axis(w.transposed ? w.out[axis] : w.in[axis], w.transposed ? w.in[axis] : w.out[axis],
                           w.taps[axis], w.stride[axis], w.padding[axis], w.dilation[axis]);
  }
  if (is_thin(p)) {
    launch_thin(task, stream);
    return;
  }
  const double positions = static_cast<double>(p.leaving.positions) * p.groups;
  const double mean = static_cast<double>(p.leaving_entries) / positions;
  // As many positions as fill a tile. With dilation neighbours have no places in common.
  int32_t run = 1;
  while (run < kRun && run < w.in[2] && w.dilation[2] == 1 && (run + 1) * mean <= kFilled * 128) {
    ++run;
  }
  const double blocks = positions / run * ceil_of(p.targets, 128) * (1 + run * mean / 128);
  const bool narrow = run * mean <= kFilled * 32 || (run == 1 && blocks < kFullGrid);
  if constexpr (std::is_same_v<T, float>) {
    if (!p.tensor_cores) {
      launch_kind<Shapes<Plain<float>, 16, 8>>(task, run, narrow, stream);
      return;
    }
  }
  launch_kind<typename ShapesOf<T>::type>(task, run, narrow, stream);
}

template bool writes_dense<float>(const SparseConv<float>&, int64_t);
template bool writes_dense<double>(const SparseConv<double>&, int64_t);
template bool writes_dense<__half>(const SparseConv<__half>&, int64_t);
template bool writes_dense<__nv_bfloat16>(const SparseConv<__nv_bfloat16>&, int64_t);
template void sparse_conv_relevance<float>(const SparseConv<float>&, Stream);
template void sparse_conv_relevance<double>(const SparseConv<double>&, Stream);
template void sparse_conv_relevance<__half>(const SparseConv<__half>&, Stream);
template void sparse_conv_relevance<__nv_bfloat16>(const SparseConv<__nv_bfloat16>&, Stream);

}  // namespace fastlrp::cuda
