// The products of one tile of sparse_conv.cu, by several kinds of arithmetic: sums[column][target] += sum over terms of
// weights[column][term] * values[term][target], both operands in shared memory.
//
// Columns are the M of tensor-core products and targets their N, so that each lane ends with neighbouring targets. A
// warp has 32 targets and every kWarpsDown-th group of 16 columns: where columns are missing at the end, all warps have
// less to do.
#pragma once

#include "tensor_core.h"

namespace fastlrp::cuda {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kGroup = 16;        // columns that are multiplied at once
constexpr int kWarpTargets = 32;  // targets of a warp; a group's sums are [4][4] of each lane's registers

// kTargets x kColumns results, of which each step adds kDepth terms.
template <int targets, int columns, int depth>
struct Tile {
  static constexpr int kTargets = targets, kColumns = columns, kDepth = depth;
  static constexpr int kWarpsAcross = targets / kWarpTargets, kWarpsDown = kWarps / kWarpsAcross;
  static constexpr int kGroups = columns / kGroup, kParts = kGroups / kWarpsDown;  // kParts groups per warp
  static_assert(kWarpsAcross * kWarpTargets == targets && kWarpsDown * kWarpsAcross == kWarps);
  static_assert(kParts >= 1 && kParts <= 4 && kParts * kWarpsDown * kGroup == columns);
};

// Groups of a warp have a byte each.
__device__ __forceinline__ bool is_active(uint32_t active, int part) { return (active & 0xffu << 8 * part) != 0; }

// Each kind has
//   Value, Element   of the arriving rows and of the weights in shared memory, of the same size
//   kStep            terms that multiply() takes
//   kValuePad        what a row of values is longer than its targets; weights' rows are longer by 16 bytes. Both keep
//                    the reads below free of bank conflicts.
//   element(b)       a weight times its coefficient, as multiply() takes it
//   multiply         adds kStep terms to the warp's groups of columns that are active; pointers are to the first term,
//   the
//                    first column of the warp's first group and the warp's first target
//   store            a group's sums to to[column * stride + target]

// What both kinds of tensor-core products leave: sums[j][2 half + i] is column group + 8 half, target 8 j + 2 thread +
// i.
__device__ __forceinline__ void store_products(const float (&sums)[4][4], float* to, int stride) {
  const int lane = threadIdx.x % kWarp, group = lane / 4, thread = lane % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      store_vector<float, 2>(to + (group + 8 * half) * stride + 8 * j + 2 * thread,
                             {sums[j][2 * half], sums[j][2 * half + 1]});
    }
  }
}

// tf32 tensor cores.
struct Tf32 {
  using Value = float;
  using Element = uint32_t;
  static constexpr int kStep = 8, kValuePad = 8;

  __device__ static uint32_t element(float b) { return to_tf32(b); }

  template <class Tile, int kValueRow, int kWeightRow>
  __device__ static void multiply(float (&sums)[Tile::kParts][4][4], const uint32_t* weights, const float* values,
                                  uint32_t active) {
    const int lane = threadIdx.x % kWarp, group = lane / 4, thread = lane % 4;
    uint32_t b[4][2];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        b[j][half] = to_tf32(values[(4 * half + thread) * kValueRow + 8 * j + group]);
      }
    }
    const uint32_t* row = weights + lane % 16 * kWeightRow + lane / 16 * 4;
#pragma unroll
    for (int part = 0; part < Tile::kParts; ++part) {
      if (is_active(active, part)) {
        uint32_t a[4];
        load_matrices<false>(a, row + part * Tile::kWarpsDown * kGroup * kWeightRow);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          mma_tf32(sums[part][j], a, b[j]);
        }
      }
    }
  }

  __device__ static void store(const float (&sums)[4][4], float* to, int stride) { store_products(sums, to, stride); }
};

// Tensor cores on float16 or bfloat16, sums in float32.
template <class T>
struct Half {
  using Value = T;
  using Element = T;
  static constexpr int kStep = 16, kValuePad = 8;

  __device__ static T element(float b) { return from_float<T>(b); }

  template <class Tile, int kValueRow, int kWeightRow>
  __device__ static void multiply(float (&sums)[Tile::kParts][4][4], const T* weights, const T* values,
                                  uint32_t active) {
    const int lane = threadIdx.x % kWarp;
    uint32_t b[2][4];  // of two products each
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      load_matrices<true>(b[pair], values + lane % 16 * kValueRow + lane / 16 * 8 + 16 * pair);
    }
    const T* row = weights + lane % 16 * kWeightRow + lane / 16 * 8;
#pragma unroll
    for (int part = 0; part < Tile::kParts; ++part) {
      if (is_active(active, part)) {
        uint32_t a[4];
        load_matrices<false>(a, row + part * Tile::kWarpsDown * kGroup * kWeightRow);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const uint32_t two[2] = {b[j / 2][2 * (j % 2)], b[j / 2][2 * (j % 2) + 1]};
          mma_16bit<T>(sums[part][j], a, two);
        }
      }
    }
  }

  __device__ static void store(const float (&sums)[4][4], float* to, int stride) { store_products(sums, to, stride); }
};

// IEEE arithmetic. A lane has four columns and four targets of each group.
template <class T>
struct Plain {
  using Value = T;
  using Element = T;
  static constexpr int kStep = kVector<T>, kValuePad = kVector<T>;
  static constexpr int kVectors = 4 / kVector<T>;  // of a lane's targets, 8 lanes side by side

  __device__ static T element(T b) { return b; }

  template <class Tile, int kValueRow, int kWeightRow>
  __device__ static void multiply(T (&sums)[Tile::kParts][4][4], const T* weights, const T* values, uint32_t active) {
    const int lane = threadIdx.x % kWarp;
    Vector<T, kVector<T>> b[kStep][kVectors];
#pragma unroll
    for (int k = 0; k < kStep; ++k) {
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        b[k][v] = load_vector<T, kVector<T>>(values + k * kValueRow + (8 * v + lane % 8) * kVector<T>);
      }
    }
#pragma unroll
    for (int part = 0; part < Tile::kParts; ++part) {
      if (is_active(active, part)) {
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          const T* row = weights + (part * Tile::kWarpsDown * kGroup + lane / 8 + 4 * r) * kWeightRow;
          const auto a = load_vector<T, kStep>(row);
#pragma unroll
          for (int k = 0; k < kStep; ++k) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              sums[part][r][i] += a.at[k] * b[k][i / kVector<T>].at[i % kVector<T>];
            }
          }
        }
      }
    }
  }

  __device__ static void store(const T (&sums)[4][4], T* to, int stride) {
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int r = 0; r < 4; ++r) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int target = (8 * (i / kVector<T>)+lane % 8) * kVector<T> + i % kVector<T>;
        to[(lane / 8 + 4 * r) * stride + target] = sums[r][i];
      }
    }
  }
};

}  // namespace fastlrp::cuda
