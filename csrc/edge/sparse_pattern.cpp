#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <limits>
#include <utility>

#include "../common/memory.h"
#include "../cpu/sparse.h"
#include "sparse_arguments.h"
#include "sparse_rows.h"

namespace fastlrp::edge {
namespace {

// Smaller buffers the C library keeps by itself.
constexpr int64_t kPooledBytes = int64_t{1} << 20;

// A tensor that owns the vector's memory.
template <class T>
at::Tensor tensor_of(std::vector<T>&& data, at::ScalarType dtype) {
  auto* owner = new std::vector<T>(std::move(data));
  return at::from_blob(owner->data(), {static_cast<int64_t>(owner->size())}, [owner](void*) { delete owner; }, dtype);
}

GatherTensors tensors_of(cpu::Gathered&& found) {
  return {tensor_of(std::move(found.entries.offsets), at::kLong),
          tensor_of(std::move(found.entries.channels), at::kInt), tensor_of(std::move(found.starts), at::kLong),
          tensor_of(std::move(found.rows), at::kLong)};
}

}  // namespace

at::Tensor new_rows(int64_t entries, int64_t targets, const at::TensorOptions& options) {
  const Sizes size{entries, round_up(targets, kLanes)};
  const int64_t bytes = product({size[0], size[1], static_cast<int64_t>(options.dtype().itemsize())});
  // PyTorch says what is wrong with sizes beyond all memory.
  if (bytes < kPooledBytes || bytes == std::numeric_limits<int64_t>::max()) {
    return at::empty(size, options);
  }
  void* data = BufferPool::shared().acquire(static_cast<size_t>(bytes));
  return at::from_blob(data, size, [](void* released) { BufferPool::shared().release(released); }, options);
}

PatternTensors sparse_pattern(const std::vector<MaskTensors>& given) {
  const Masks masks({kCpu, "sparse_pattern"}, given);
  cpu::Entries found;
  dispatch(masks.maps.front(), [&](auto zero) {
    using T = decltype(zero);
    std::vector<Mask<T>> views;
    for (size_t i = 0; i < masks.maps.size(); ++i) {
      views.push_back(masks.view<T>(i));
    }
    found = cpu::sparse_pattern<T>(views, masks.size[0], masks.size[1], masks.spatial);
  });
  return {tensor_of(std::move(found.offsets), at::kLong), tensor_of(std::move(found.channels), at::kInt)};
}

at::Tensor sparse_from_dense(const at::Tensor& relevance_, const PatternTensors& pattern) {
  const DenseArguments a({kCpu, "sparse_from_dense"}, relevance_, pattern);
  const at::Tensor relevance = flattened(a.relevance.resolve_neg(), 3);
  at::Tensor values = new_rows(a.entries, relevance.size(1), relevance.options());
  dispatch(values, [&](auto zero) {
    using T = decltype(zero);
    cpu::sparse_from_dense<T>(dense_of<const T>(relevance), a.pattern, values.mutable_data_ptr<T>(), values.size(1));
  });
  return values;
}

at::Tensor sparse_to_dense(const RowTensors& source, int64_t batch, int64_t targets, const Sizes& size) {
  const ToDenseArguments a({kCpu, "sparse_to_dense"}, source, batch, targets, size);
  at::Tensor dense = at::empty(a.memory, source.values.options()).movedim(-1, 2);
  dispatch(source.values, [&](auto zero) {
    using T = decltype(zero);
    cpu::sparse_to_dense<T>(rows_of<T>(source, a.pattern), dense_of<T>(dense));
  });
  return dense;
}

at::Tensor sparse_sum(const std::vector<SummandTensors>& sources, const PatternTensors& pattern, int64_t batch,
                      int64_t targets) {
  const SumArguments a({kCpu, "sparse_sum"}, sources, pattern, batch, targets);
  at::Tensor values = new_rows(pattern.channels.numel(), targets, sources.front().values.options());
  dispatch(values, [&](auto zero) {
    using T = decltype(zero);
    cpu::sparse_sum<T>(a.summands.views<T>(), a.pattern, batch, targets, values.mutable_data_ptr<T>(),
                       values.stride(0));
  });
  return values;
}

GatherTensors sparse_winners(const at::Tensor& index_, const PatternTensors& pooled, const Sizes& input_size,
                             const Sizes& kernel_size, const Sizes& stride, const Sizes& padding,
                             const Sizes& dilation) {
  const WinnersArguments a({kCpu, "sparse_winners"}, index_, pooled,
                           {input_size, {}, kernel_size, stride, padding, dilation});
  const at::Tensor index = flattened(a.index, 2);
  return tensors_of(cpu::sparse_winners(map_of<int64_t>(index), a.pooled, a.window, index.size(0)));
}

GatherTensors sparse_windows(const PatternTensors& wanted, const PatternTensors& pooled, int64_t batch,
                             const Sizes& input_size, const Sizes& output_size, const Sizes& kernel_size,
                             const Sizes& stride, const Sizes& padding) {
  const WindowsArguments a({kCpu, "sparse_windows"}, wanted, pooled, batch,
                           {input_size, output_size, kernel_size, stride, padding, Sizes(kernel_size.size(), 1)});
  cpu::Gathered found = cpu::sparse_windows(a.wanted, a.pooled, a.window, batch);
  if (found.everything) {
    return {wanted.offsets, wanted.channels, tensor_of(std::move(found.starts), at::kLong),
            tensor_of(std::move(found.rows), at::kLong)};
  }
  return tensors_of(std::move(found));
}

at::Tensor sparse_gather_sum(const RowTensors& source, const at::Tensor& starts, const at::Tensor& rows,
                             int64_t targets) {
  const GatherArguments a({kCpu, "sparse_gather_sum"}, source, starts, rows, targets);
  at::Tensor result = new_rows(a.lists, targets, source.values.options());
  dispatch(source.values, [&](auto zero) {
    using T = decltype(zero);
    cpu::sparse_gather_sum<T>(rows_of<T>(source, a.pattern), memory_of<const int64_t>(starts),
                              memory_of<const int64_t>(rows), a.lists, targets, result.mutable_data_ptr<T>(),
                              result.stride(0));
  });
  return result;
}

}  // namespace fastlrp::edge
