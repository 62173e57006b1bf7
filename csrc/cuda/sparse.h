#pragma once

#include <cstdint>

#include "../common/pattern.h"

// Shared sparsity on the device: what csrc/cpu/sparse.h says, with the same layout. All pointers are the device's, and
// all structs are passed to kernels by value.

namespace fastlrp::cuda {

// Columns of a row are padded to a multiple of this many targets: 32 bytes of float16, 128 of float64. Rows that we
// make are therefore aligned to 16 bytes; narrowed ones (some of the targets) need not be.
constexpr int64_t kLanes = 16;

// What a kernel reads and writes at once.
constexpr int64_t kVectorBytes = 16;

struct Pattern {
  const int64_t* offsets;   // (positions + 1), positions = B * spatial
  const int32_t* channels;  // (offsets[positions]), ascending within a position
  int64_t positions;
};

template <class T>
struct Rows {
  const T* values;      // (…, stride)
  int64_t stride;       // elements between rows
  const int64_t* rows;  // entry of the pattern -> row of values; null: the same
  Pattern pattern;

  // Where an entry's row begins among the values.
  FASTLRP_HOST_DEVICE int64_t begin(int64_t entry) const { return (rows == nullptr ? entry : rows[entry]) * stride; }
  FASTLRP_HOST_DEVICE const T* row(int64_t entry) const { return values + begin(entry); }
};

// A dense tensor (B, C, positions) by strides; null data: ones.
template <class T>
struct Map {
  const T* data;
  int64_t batch, channel, position;

  FASTLRP_HOST_DEVICE const T& at(int64_t b, int64_t c, int64_t p) const {
    return data[b * batch + c * channel + p * position];
  }
};

// (B, K, C, positions) by strides.
template <class T>
struct DenseMap {
  T* data;
  int64_t batch, targets, channels, spatial;
  int64_t batch_stride, target_stride, channel_stride, position_stride;
};

// Rows, each to be multiplied with the factor of its neuron (null data: 1).
template <class T>
struct Summand {
  Rows<T> source;
  Map<T> factor;
};

// Leading axes of 1- and 2-dimensional layers are padded with ones. All numbers, and the product of each side's sizes,
// are below 2^31: divisions of 32 bits are several times shorter than those of 64.
struct Window {
  int32_t in[3], out[3], taps[3], stride[3], padding[3], dilation[3];
  bool transposed;
};

}  // namespace fastlrp::cuda
