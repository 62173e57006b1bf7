#pragma once

#include <cstdint>

#include "host_device.h"

// Shared sparsity, as the kernels of the CPU and of the GPU take it: for one sample all targets have the same dead
// neurons, so relevance is kept for alive ones only.
//
// A pattern lists the alive channels of every position in ascending order (offsets per position, then channels); a
// compact register holds one row of targets per entry of a pattern. The target axis is innermost and contiguous, so
// that an unstructured choice of neurons is still dense vector work.

namespace fastlrp {

// Columns of a row are padded to a multiple of this many targets: 32 bytes of float16, 128 of float64.
constexpr int64_t kLanes = 16;

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

// Values (B, C, positions), or, with an index of the same shape, the values at the positions that it names.
template <class T>
struct Mask {
  Map<T> map;
  Map<int64_t> index;  // null data: none
  int64_t places;      // of the map, which an index must name
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

template <class T>
struct Product {
  const T* weight;     // packed as the device's kernel reads it
  Map<T> coefficient;  // (B, Co, *S'): u or v of the output neurons
};

// Leading axes of 1- and 2-dimensional layers are padded with ones. All numbers, and the product of each side's sizes,
// are below 2^31: the GPU has them in 32 bits, of which divisions are several times shorter.
template <class N>
struct WindowOf {
  N in[3], out[3], taps[3], stride[3], padding[3], dilation[3];
  bool transposed;

  FASTLRP_HOST_DEVICE int64_t inputs() const { return int64_t{1} * in[0] * in[1] * in[2]; }
  FASTLRP_HOST_DEVICE int64_t outputs() const { return int64_t{1} * out[0] * out[1] * out[2]; }
};

}  // namespace fastlrp
