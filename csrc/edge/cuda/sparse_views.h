// Patterns, rows and windows that arrive as tensors, checked and as the kernels take them. What patterns hold is on the
// device and trusted: they are made by sparse_pattern, sparse_winners and sparse_windows only.
#pragma once

#include <tuple>
#include <vector>

#include "../../cuda/sparse.h"
#include "../maps.h"
#include "../sparse.h"
#include "device.h"

namespace fastlrp::edge::cuda {

namespace kernels = fastlrp::cuda;

// A floating-point tensor on the device; one of the dtype and device of another.
void check_values(const char* op, const char* name, const at::Tensor& tensor);
void check_like(const char* op, const char* name, const at::Tensor& tensor, const at::Tensor& like);

kernels::Pattern view(const char* op, const at::Tensor& offsets, const at::Tensor& channels, const at::Tensor& like);

void check_rows(const char* op, const at::Tensor& values, const OptionalTensor& rows, const at::Tensor& channels,
                int64_t targets);

template <class T>
kernels::Rows<T> view(const char* op, const RowTensors& source, int64_t targets) {
  const auto& [values, rows, offsets, channels] = source;
  check_values(op, "values", values);
  const kernels::Pattern pattern = view(op, offsets, channels, values);
  check_rows(op, values, rows, channels, targets);
  return {data_of<T>(values), values.stride(0), data_of<int64_t>(rows), pattern};
}

// The tensor must outlive the view.
template <class T>
kernels::Map<T> map_of(const at::Tensor& map) {
  return {data_of<T>(map), map.stride(0), map.stride(1), position_stride(map, 2)};
}
template <class T>
kernels::DenseMap<T> dense_of(const at::Tensor& map) {
  return {data_of<std::remove_const_t<T>>(map),
          map.size(0),
          map.size(1),
          map.size(2),
          spatial_of(map, 3),
          map.stride(0),
          map.stride(1),
          map.stride(2),
          position_stride(map, 3)};
}

// (entries, targets rounded up to whole vectors).
at::Tensor new_rows(int64_t entries, int64_t targets, const at::TensorOptions& options);

kernels::Window window_of(const char* op, at::IntArrayRef in, at::IntArrayRef out, at::IntArrayRef taps,
                          at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed);

// Positions of a sample on either side.
inline int64_t inputs_of(const kernels::Window& w) { return int64_t{1} * w.in[0] * w.in[1] * w.in[2]; }
inline int64_t outputs_of(const kernels::Window& w) { return int64_t{1} * w.out[0] * w.out[1] * w.out[2]; }

// What a list of summands refers to, kept alive while the kernel is launched.
struct Summands {
  const std::vector<SummandTensors>& sources;
  std::vector<at::Tensor> factors;

  Summands(const char* op, const std::vector<SummandTensors>& given, const at::Tensor& like, int64_t batch,
           int64_t positions);

  template <class T>
  std::vector<kernels::Summand<T>> views(const char* op, int64_t targets) const {
    std::vector<kernels::Summand<T>> result;
    for (size_t i = 0; i < sources.size(); ++i) {
      const auto& [values, rows, offsets, channels, factor] = sources[i];
      result.push_back({view<T>(op, {values, rows, offsets, channels}, targets),
                        factors[i].defined() ? map_of<T>(factors[i]) : kernels::Map<T>{nullptr, 0, 0, 0}});
    }
    return result;
  }
};

}  // namespace fastlrp::edge::cuda
