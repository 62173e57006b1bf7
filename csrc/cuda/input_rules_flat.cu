#include "../common/maps.h"
#include "input_rules_parts.h"

// The flat rule: every channel of the input gets the same, so the outputs' channels are summed up first, and a box
// filters the small map that is left.

namespace fastlrp::cuda {
namespace {

constexpr int kThreads = 256;

template <class T>
struct FlatJob {
  InputFlat<T> p;
  Divisor inputs_x, inputs_y, outputs_x, outputs_y;
  int64_t inputs, outputs;
  int lanes;  // that share an output
};

// summed[b, k, o] = sum over channels of u F. `lanes` neighbours share an output, each with V channels at once.
template <class T, int V>
__global__ void __launch_bounds__(kThreads) flat_sum_kernel(const __grid_constant__ FlatJob<T> job) {
  using A = Accumulate<T>;
  const InputFlat<T>& p = job.p;
  const int64_t rows = p.B * p.K * job.outputs, step = int64_t{gridDim.x} * kThreads / job.lanes;
  const int32_t lane = static_cast<int32_t>(threadIdx.x % job.lanes);
  const int64_t thread = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t stride = V > 1 ? 1 : p.strides[2], u_stride = V > 1 ? 1 : p.u_strides[1];
  FASTLRP_ROLLED
  for (int64_t base = thread / kWarp * kWarp / job.lanes; base < rows; base += step) {
    const int64_t row = base + threadIdx.x % kWarp / job.lanes;
    A sum = 0;
    if (row < rows) {
      const int64_t map = row / job.outputs, b = map / p.K, k = map - b * p.K;
      const uint32_t o = static_cast<uint32_t>(row - map * job.outputs), line = job.outputs_x.divide(o),
                     z = job.outputs_y.divide(line);
      const int64_t at[3] = {z, line - z * job.outputs_y.value, o - line * job.outputs_x.value};
      const T* f = p.relevance + b * p.strides[0] + k * p.strides[1];
      const T* u = p.u + b * p.u_strides[0];
      for (int a = 0; a < 3; ++a) {
        f += at[a] * p.strides[3 + a];
        u += at[a] * p.u_strides[2 + a];
      }
#pragma unroll 4
      for (int64_t c = int64_t{lane} * V; c < p.Co; c += job.lanes * V) {
        const auto relevance = load_vector<T, V>(f + c * stride);
        const auto coefficient = load_vector<T, V>(u + c * u_stride);
#pragma unroll
        for (int v = 0; v < V; ++v) {
          sum += to_float(relevance.at[v]) * to_float(coefficient.at[v]);
        }
      }
    }
    for (int distance = job.lanes / 2; distance > 0; distance /= 2) {
      sum += __shfl_xor_sync(kAllLanes, sum, distance);
    }
    if (row < rows && lane == 0) {
      p.summed[row] = sum;
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) flat_box_kernel(const __grid_constant__ FlatJob<T> job) {
  using A = Accumulate<T>;
  const InputFlat<T>& p = job.p;
  T* values = shared_array<T, kThreads, __LINE__>();
  const int64_t all = p.B * p.K * job.inputs;
  FASTLRP_ROLLED
  for (int64_t begin = int64_t{blockIdx.x} * kThreads; begin < all; begin += int64_t{gridDim.x} * kThreads) {
    const int64_t item = begin + threadIdx.x;
    if (item < all) {
      const int64_t map = item / job.inputs;
      const uint32_t i = static_cast<uint32_t>(item - map * job.inputs), row = job.inputs_x.divide(i),
                     z = job.inputs_y.divide(row);
      const A* summed = p.summed + map * job.outputs;
      A sum = 0;
      over_places(p.axes[0].outputs_of(z), p.axes[1].outputs_of(row - z * job.inputs_y.value),
                  p.axes[2].outputs_of(i - row * job.inputs_x.value), p.axes[1].outputs, p.axes[2].outputs,
                  [&](uint32_t o, int32_t, int32_t, int32_t) { sum += summed[o]; });
      values[threadIdx.x] = from_float<T>(sum * static_cast<A>(p.factor));
    }
    __syncthreads();
    const int64_t count = all - begin < kThreads ? all - begin : int64_t{kThreads};
    FASTLRP_ROLLED
    for (int64_t n = threadIdx.x; n < count * p.channels; n += kThreads) {
      p.out[begin * p.channels + n] = values[n / p.channels];
    }
    __syncthreads();
  }
}

template <class T, int V>
void launch_flat_sum(FlatJob<T>& job, Stream stream) {
  // Neighbours share an output where channels are neighbours in memory; else they read neighbouring outputs.
  job.lanes = 1;
  while (job.p.strides[2] == 1 && job.lanes < kWarp && int64_t{job.lanes} * V < job.p.Co) {
    job.lanes *= 2;
  }
  const int64_t rows = job.p.B * job.p.K * job.outputs;
  launch(flat_sum_kernel<T, V>, dim3(blocks_for(rows, kThreads / job.lanes)), dim3(kThreads), 0, stream, job);
}

}  // namespace

template <class T>
void input_flat_relevance(const InputFlat<T>& p, Stream stream) {
  FlatJob<T> job{p,
                 Divisor(p.axes[2].inputs),
                 Divisor(p.axes[1].inputs),
                 Divisor(p.axes[2].outputs),
                 Divisor(p.axes[1].outputs),
                 product(p.axes, &Axis::inputs),
                 product(p.axes, &Axis::outputs),
                 1};
  constexpr int V = kVector<T>;
  const bool vectors = reads_vectors(p.relevance, p.strides, &p.u, 1, p.u_strides, p.Co, V);
  vectors ? launch_flat_sum<T, V>(job, stream) : launch_flat_sum<T, 1>(job, stream);
  const int64_t all = p.B * p.K * job.inputs;
  launch(flat_box_kernel<T>, dim3(blocks_for(all, kThreads)), dim3(kThreads), 0, stream, job);
}

#define FASTLRP_INPUT_FLAT(T) template void input_flat_relevance<T>(const InputFlat<T>&, Stream);
FASTLRP_INPUT_FLAT(float)
FASTLRP_INPUT_FLAT(double)
FASTLRP_INPUT_FLAT(__half)
FASTLRP_INPUT_FLAT(__nv_bfloat16)
#undef FASTLRP_INPUT_FLAT

}  // namespace fastlrp::cuda
