#pragma once

#include <cstdint>

namespace fastlrp::cpu {

// acc[j * acc_stride + k] += sum over i < count of  weight[row[i] + column[j]] * s[i * s_stride + k]
// for j < left and k < width, a multiple of kLanes; if `fresh`, acc begins at zero. The sum's order is that of i:
// results don't depend on left or width. The columns ascend.
// `Number`: of the weights and of s.
template <class T, class Number>
using Multiply = void (*)(bool fresh, int64_t width, int64_t left, const Number* weight, const int32_t* row,
                          int64_t count, const Number* s, int64_t s_stride, const int32_t* column, T* acc,
                          int64_t acc_stride);
template <class T>
using MultiplyAdd = Multiply<T, T>;

// to[e * to_stride + k] = scale[e] * source[rows[e] * stride + k] for k < valid, 0 up to width; null rows: e; row -1:
// 0.
template <class T>
using ScaleRows = void (*)(int64_t width, int64_t valid, int64_t count, const T* source, int64_t stride,
                           const int64_t* rows, const T* scale, T* to, int64_t to_stride);

// The channels at which any of the maps is not zero, ascending; returns how many. `out` needs kLanes entries to spare.
template <class T>
using AliveChannels = int64_t (*)(const T* const* maps, int64_t count, int64_t channels, int32_t* out);

template <class T>
struct SparseKernel {
  MultiplyAdd<T> multiply_add;
  ScaleRows<T> scale_rows;
  AliveChannels<T> alive_channels;
};

// For the instruction set in use.
template <class T>
SparseKernel<T> sparse_kernel();

}  // namespace fastlrp::cpu
