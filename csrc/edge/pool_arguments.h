// The arguments of pools, checked, for the kernels of any device.
#pragma once

#include "../common/pool.h"
#include "axes.h"
#include "tensors.h"

namespace fastlrp::edge {

// What every pool has, in one memory order. The relevance, by far the largest, decides which; its axes in front of
// `dense_from` may have any strides.
struct PoolArguments {
  Check check;
  Sizes input_size;
  Tensor relevance, scale;  // scale: not defined where there is none
  int64_t B, K, C, outputs, inputs;
  bool channels_last;

  PoolArguments(const Check& check, const Tensor& relevance, const OptionalTensor& scale, const Sizes& input_size,
                int64_t dense_from);

  Ints output_size() const { return relevance.sizes().slice(3); }
  void geometry(const char* name, Ints values, int64_t least) const;

  // A tensor without a target axis, (B, C, *size), in the memory order of the relevance.
  Tensor cache(const char* name, const Tensor& tensor, ScalarType dtype, Ints size) const;

  // (B, K, C, *input_size)
  Tensor empty_out() const;

  // For kernels, with the data of relevance, of scale or null, and of the result.
  template <class T>
  PoolFlow<T> flow(const T* relevance_data, const T* scale_data, T* out) const {
    return {relevance_data,
            relevance.stride(0),
            relevance.stride(1),
            relevance.stride(2),
            scale_data,
            out,
            B,
            K,
            C,
            outputs,
            inputs,
            channels_last};
  }

  template <class Line, class Make>
  std::array<Line, 3> lines(const Line& one, const Make& make) const {
    return three_axes<Line>(check, "relevance", relevance, input_size.size(), one, make);
  }
};

// With pool_ties_relevance's own.
struct TiesArguments {
  PoolArguments pool;
  Tensor input, output;

  TiesArguments(const Check& check, const Tensor& relevance, const Tensor& input, const Tensor& output,
                const OptionalTensor& scale, const Sizes& kernel_size, const Sizes& stride, const Sizes& padding,
                const Sizes& dilation, int64_t dense_from);
};

void check_average(const PoolArguments& pool, const Sizes& kernel_size, const Sizes& stride, const Sizes& padding,
                   std::optional<int64_t> divisor_override);

// An adaptive average whose windows are the same for all outputs: one over everything is a broadcast, which costs no
// memory, and with one entry each the relevance passes. None otherwise.
OptionalTensor adaptive_view(const PoolArguments& pool);

}  // namespace fastlrp::edge
