#pragma once

#include "tensors.h"

namespace fastlrp::edge {

// Relevance through pools, on the tensors of one device: on a CPU in two dtypes, on a GPU in four. Results are the same
// each time.
struct PoolFunctions {
  // The CPU's raises an error for an index outside the flattened input_size. The GPU's drops its relevance, since it
  // would have to wait for the device; the public function's index comes from max_pool, which makes none such.
  Tensor (*max_relevance)(const Tensor& relevance, const Tensor& index, const OptionalTensor& scale,
                          const Sizes& input_size);

  Tensor (*ties_relevance)(const Tensor& relevance, const Tensor& input, const Tensor& output,
                           const OptionalTensor& scale, const Sizes& kernel_size, const Sizes& stride,
                           const Sizes& padding, const Sizes& dilation);

  // ceil_mode is not read: the size of the relevance tells.
  Tensor (*avg_relevance)(const Tensor& relevance, const OptionalTensor& scale, const Sizes& input_size,
                          const Sizes& kernel_size, const Sizes& stride, const Sizes& padding, bool ceil_mode,
                          bool count_include_pad, std::optional<int64_t> divisor_override);

  // As in the torch backend: one window over all is a view, expanded; a map of the same size shares memory where there
  // is no scale.
  Tensor (*adaptive_avg_relevance)(const Tensor& relevance, const OptionalTensor& scale, const Sizes& input_size);
};

extern const PoolFunctions kPool;  // of the CPU

namespace cuda {
extern const PoolFunctions kPool;
}

}  // namespace fastlrp::edge
