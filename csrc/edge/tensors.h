// What every edge function needs: checks with messages that say what to do, and memory orders.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace fastlrp::edge {

using OptionalTensor = std::optional<at::Tensor>;

void check_cpu(const char* op, const char* name, const at::Tensor& tensor);
void check_float(const char* op, const char* name, const at::Tensor& tensor);
void check_dtype(const char* op, const char* name, const at::Tensor& tensor, at::ScalarType dtype);
void check_sizes(const char* op, const char* name, const at::Tensor& tensor, at::IntArrayRef expected);

// (…, C, *S) with C innermost and everything after it dense: true for channels-last memory, false for contiguous.
bool channels_last_dense(const at::Tensor& tensor, int64_t channel_axis);
bool contiguous_from(const at::Tensor& tensor, int64_t first_axis);

// (B, C, *S) -> its memory with C innermost.
at::Tensor to_channels_last(const at::Tensor& tensor);

}  // namespace fastlrp::edge
