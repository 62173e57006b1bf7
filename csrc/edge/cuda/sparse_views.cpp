#include "sparse_views.h"

namespace fastlrp::edge::cuda {

void check_values(const char* op, const char* name, const at::Tensor& tensor) {
  check_device(op, name, tensor);
  check_floating(op, name, tensor);
}

void check_like(const char* op, const char* name, const at::Tensor& tensor, const at::Tensor& like) {
  check_same_device(op, name, tensor, like);
  TORCH_CHECK_TYPE(tensor.scalar_type() == like.scalar_type(), op, ": ", name, " must be ", like.scalar_type(),
                   ", got ", tensor.scalar_type());
}

kernels::Pattern view(const char* op, const at::Tensor& offsets, const at::Tensor& channels, const at::Tensor& like) {
  check_same_device(op, "offsets", offsets, like);
  check_same_device(op, "channels", channels, like);
  TORCH_CHECK_TYPE(offsets.scalar_type() == at::kLong && channels.scalar_type() == at::kInt, op,
                   ": a pattern has int64 offsets and int32 channels, got ", offsets.scalar_type(), " and ",
                   channels.scalar_type());
  TORCH_CHECK_VALUE(offsets.dim() == 1 && offsets.numel() >= 1 && offsets.is_contiguous() && channels.is_contiguous(),
                    op, ": offsets must be contiguous with one entry more than there are positions");
  return {data_of<int64_t>(offsets), data_of<int32_t>(channels), offsets.numel() - 1};
}

void check_rows(const char* op, const at::Tensor& values, const OptionalTensor& rows, const at::Tensor& channels,
                int64_t targets) {
  TORCH_CHECK_VALUE(targets >= 0, op, ": targets must not be negative, got ", targets);
  TORCH_CHECK_VALUE(values.dim() == 2 && values.size(1) >= targets && (values.size(1) <= 1 || values.stride(1) == 1),
                    op, ": values must be rows of at least ", targets, " targets, got ", values.sizes());
  if (rows.has_value()) {
    check_same_device(op, "rows", *rows, values);
    TORCH_CHECK_VALUE(rows->scalar_type() == at::kLong && rows->is_contiguous() && rows->numel() == channels.numel(),
                      op, ": rows must be int64, one per entry of the pattern");
  } else {
    TORCH_CHECK_VALUE(values.size(0) == channels.numel(), op, ": values must have ", channels.numel(), " rows, got ",
                      values.size(0));
  }
}

at::Tensor new_rows(int64_t entries, int64_t targets, const at::TensorOptions& options) {
  return at::empty({entries, round_up(targets, kernels::kLanes)}, options);
}

kernels::Window window_of(const char* op, at::IntArrayRef in, at::IntArrayRef out, at::IntArrayRef taps,
                          at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed) {
  const size_t n = in.size();
  TORCH_CHECK_VALUE(n <= 3 && out.size() == n && taps.size() == n && stride.size() == n && padding.size() == n &&
                        dilation.size() == n,
                    op, ": sizes, stride, padding and dilation must have one entry per spatial axis, at most 3");
  kernels::Window window{{1, 1, 1}, {1, 1, 1}, {1, 1, 1}, {1, 1, 1}, {0, 0, 0}, {1, 1, 1}, transposed};
  constexpr int64_t most = INT32_MAX;
  int64_t inputs = 1, outputs = 1;
  for (size_t i = 0; i < n; ++i) {
    const size_t axis = 3 - n + i;
    TORCH_CHECK_VALUE(in[i] >= 0 && out[i] >= 0, op, ": sizes must not be negative, got ", in[i], " and ", out[i]);
    TORCH_CHECK_VALUE(stride[i] >= 1 && dilation[i] >= 1 && padding[i] >= 0 && taps[i] >= 1, op,
                      ": stride, dilation and kernel size must be at least 1, padding at least 0");
    bool fits = true;  // each before it is multiplied
    for (const int64_t number : {in[i], out[i], taps[i], stride[i], padding[i], dilation[i]}) {
      fits = fits && number <= most;
    }
    fits = fits && taps[i] * dilation[i] + padding[i] + stride[i] <= most && in[i] + padding[i] + stride[i] <= most &&
           (out[i] + 1) * stride[i] <= most && inputs * in[i] <= most && outputs * out[i] <= most;
    TORCH_CHECK_VALUE(fits, op, ": a sample's positions and what windows span must be below 2^31, got sizes ", in,
                      " and ", out, ", kernel size ", taps, ", stride ", stride, ", padding ", padding, ", dilation ",
                      dilation);
    inputs *= in[i], outputs *= out[i];
    window.in[axis] = static_cast<int32_t>(in[i]), window.out[axis] = static_cast<int32_t>(out[i]);
    window.taps[axis] = static_cast<int32_t>(taps[i]), window.stride[axis] = static_cast<int32_t>(stride[i]);
    window.padding[axis] = static_cast<int32_t>(padding[i]), window.dilation[axis] = static_cast<int32_t>(dilation[i]);
  }
  return window;
}

Summands::Summands(const char* op, const std::vector<SummandTensors>& given, const at::Tensor& like, int64_t batch,
                   int64_t positions)
    : sources(given) {
  for (const SummandTensors& source : given) {
    check_like(op, "values", std::get<0>(source), like);
    TORCH_CHECK_VALUE(std::get<2>(source).numel() == positions + 1, op, ": patterns differ in their positions");
    const OptionalTensor& factor = std::get<4>(source);
    if (factor.has_value()) {
      check_like(op, "factor", *factor, like);
      TORCH_CHECK_VALUE(
          factor->dim() >= 2 && factor->size(0) == batch && factor->size(0) * spatial_of(*factor, 2) == positions, op,
          ": factor must have shape (B, C, *S), got ", factor->sizes());
    }
    factors.push_back(factor.has_value() ? flattened(factor->resolve_neg(), 2) : at::Tensor());
  }
}

}  // namespace fastlrp::edge::cuda
