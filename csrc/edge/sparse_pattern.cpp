
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
Tensor tensor_of(std::vector<T>&& data, ScalarType dtype) {
  auto* owner = new std::vector<T>(std::move(data));
  return from_memory(owner->data(), {static_cast<int64_t>(owner->size())}, dtype, [owner] { delete owner; });
}

GatherTensors tensors_of(cpu::Gathered&& found) {
  return {tensor_of(std::move(found.entries.offsets), kLong), tensor_of(std::move(found.entries.channels), kInt),
          tensor_of(std::move(found.starts), kLong), tensor_of(std::move(found.rows), kLong)};
}

}  // namespace

Tensor new_rows(int64_t entries, int64_t targets, const Tensor& like) {
  const Sizes size{entries, round_up(targets, kLanes)};
  const int64_t bytes = product({size[0], size[1], like.itemsize()});
  // PyTorch says what is wrong with sizes beyond all memory.
  if (bytes < kPooledBytes || bytes == std::numeric_limits<int64_t>::max()) {
    return empty(size, like);
  }
  void* data = BufferPool::shared().acquire(static_cast<size_t>(bytes));
  return from_memory(data, size, like.scalar_type(), [data] { BufferPool::shared().release(data); });
}

namespace {

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
  return {tensor_of(std::move(found.offsets), kLong), tensor_of(std::move(found.channels), kInt)};
}

Tensor sparse_from_dense(const Tensor& relevance_, const PatternTensors& pattern) {
  const DenseArguments a({kCpu, "sparse_from_dense"}, relevance_, pattern);
  const Tensor relevance = flattened(a.relevance.resolve_neg(), 3);
  Tensor values = new_rows(a.entries, relevance.size(1), relevance);
  dispatch(values, [&](auto zero) {
    using T = decltype(zero);
    cpu::sparse_from_dense<T>(dense_of<const T>(relevance), a.pattern, values.mutable_data_ptr<T>(), values.size(1));
  });
  return values;
}

Tensor sparse_to_dense(const RowTensors& source, int64_t batch, int64_t targets, const Sizes& size) {
  const ToDenseArguments a({kCpu, "sparse_to_dense"}, source, batch, targets, size);
  Tensor dense = empty(a.memory, source.values).movedim(-1, 2);
  dispatch(source.values, [&](auto zero) {
    using T = decltype(zero);
    cpu::sparse_to_dense<T>(rows_of<T>(source, a.pattern), dense_of<T>(dense));
  });
  return dense;
}

Tensor sparse_sum(const std::vector<SummandTensors>& sources, const PatternTensors& pattern, int64_t batch,
                  int64_t targets) {
  const SumArguments a({kCpu, "sparse_sum"}, sources, pattern, batch, targets);
  Tensor values = new_rows(pattern.channels.numel(), targets, sources.front().values);
  dispatch(values, [&](auto zero) {
    using T = decltype(zero);
    cpu::sparse_sum<T>(a.summands.views<T>(), a.pattern, batch, targets, values.mutable_data_ptr<T>(),
                       values.stride(0));
  });
  return values;
}

GatherTensors sparse_winners(const Tensor& index_, const PatternTensors& pooled, const Sizes& input_size,
                             const Sizes& kernel_size, const Sizes& stride, const Sizes& padding,
                             const Sizes& dilation) {
  const WinnersArguments a({kCpu, "sparse_winners"}, index_, pooled,
                           {input_size, {}, kernel_size, stride, padding, dilation});
  const Tensor index = flattened(a.index, 2);
  return tensors_of(cpu::sparse_winners(map_of<int64_t>(index), a.pooled, a.window, index.size(0)));
}

GatherTensors sparse_windows(const PatternTensors& wanted, const PatternTensors& pooled, int64_t batch,
                             const Sizes& input_size, const Sizes& output_size, const Sizes& kernel_size,
                             const Sizes& stride, const Sizes& padding) {
  const WindowsArguments a({kCpu, "sparse_windows"}, wanted, pooled, batch,
                           {input_size, output_size, kernel_size, stride, padding, Sizes(kernel_size.size(), 1)});
  cpu::Gathered found = cpu::sparse_windows(a.wanted, a.pooled, a.window, batch);
  if (found.everything) {
    return {wanted.offsets, wanted.channels, tensor_of(std::move(found.starts), kLong),
            tensor_of(std::move(found.rows), kLong)};
  }
  return tensors_of(std::move(found));
}

Tensor sparse_gather_sum(const RowTensors& source, const Tensor& starts, const Tensor& rows, int64_t targets) {
  const GatherArguments a({kCpu, "sparse_gather_sum"}, source, starts, rows, targets);
  Tensor result = new_rows(a.lists, targets, source.values);
  dispatch(source.values, [&](auto zero) {
    using T = decltype(zero);
    cpu::sparse_gather_sum<T>(rows_of<T>(source, a.pattern), memory_of<const int64_t>(starts),
                              memory_of<const int64_t>(rows), a.lists, targets, result.mutable_data_ptr<T>(),
                              result.stride(0));
  });
  return result;
}

}  // namespace

const SparsePatternFunctions kSparsePattern{sparse_pattern, sparse_from_dense, sparse_to_dense,  sparse_sum,
                                            sparse_winners, sparse_windows,    sparse_gather_sum};

}  // namespace fastlrp::edge
