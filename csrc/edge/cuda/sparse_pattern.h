#pragma once

#include "../sparse.h"
#include "device.h"

// The functions of edge/sparse.h of these names, on the device, for float16 and bfloat16 as well. How many entries a
// new pattern has is read on the host, because the host allocates: sparse_pattern and sparse_windows wait for the
// device once, sparse_winners and sparse_windows with overlap twice (entries and rows). What moves relevance never
// does, unless a pattern or rows come from elsewhere or were changed: these are looked at once (looked_at.h).

namespace fastlrp::edge::cuda {

PatternTensors sparse_pattern(const std::vector<MaskTensors>& masks);

Tensor sparse_from_dense(const Tensor& relevance, const PatternTensors& pattern);

Tensor sparse_to_dense(const RowTensors& source, int64_t batch, int64_t targets, const Sizes& size);

Tensor sparse_sum(const std::vector<SummandTensors>& sources, const PatternTensors& pattern, int64_t batch,
                  int64_t targets);

GatherTensors sparse_winners(const Tensor& index, const PatternTensors& pooled, const Sizes& input_size,
                             const Sizes& kernel_size, const Sizes& stride, const Sizes& padding,
                             const Sizes& dilation);

GatherTensors sparse_windows(const PatternTensors& wanted, const PatternTensors& pooled, int64_t batch,
                             const Sizes& input_size, const Sizes& output_size, const Sizes& kernel_size,
                             const Sizes& stride, const Sizes& padding);

Tensor sparse_gather_sum(const RowTensors& source, const Tensor& starts, const Tensor& rows, int64_t targets);

}  // namespace fastlrp::edge::cuda
