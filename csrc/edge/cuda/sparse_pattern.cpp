#include "sparse_pattern.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "../../cuda/scan.h"
#include "../../cuda/sparse_pattern.h"
#include "../../cuda/sparse_pool.h"
#include "../../cuda/sparse_rows.h"
#include "sparse_views.h"

namespace fastlrp::edge::cuda {
namespace {

at::TensorOptions longs(const at::Tensor& like) { return like.options().dtype(at::kLong); }
at::TensorOptions ints(const at::Tensor& like) { return like.options().dtype(at::kInt); }

// The counts, the first `count` of which are written, become where each list begins; returns their sum's tensor.
at::Tensor scan(const at::Tensor& counts, int64_t count, Stream stream) {
  const at::Tensor scratch = at::empty({kernels::scan_scratch(count)}, counts.options());
  kernels::exclusive_scan(data_of<int64_t>(counts), count, data_of<int64_t>(scratch), stream);
  return counts.narrow(0, count, 1);
}

// Masks as they came, or copies that kernels can address.
struct Masks {
  std::vector<at::Tensor> maps, indices;
  std::vector<int64_t> size;

  Masks(const char* op, const std::vector<std::tuple<at::Tensor, OptionalTensor>>& masks) {
    TORCH_CHECK_VALUE(!masks.empty(), op, ": no mask given");
    const at::Tensor& like = std::get<0>(masks.front());
    check_values(op, "mask", like);
    for (const auto& [map, index] : masks) {
      check_like(op, "mask", map, like);
      TORCH_CHECK_VALUE(map.dim() >= 2, op, ": mask must have shape (B, C, *S), got ", map.sizes());
      maps.push_back(flattened(map.resolve_neg(), 2));
      indices.emplace_back();
      if (index.has_value()) {
        check_same_device(op, "index", *index, like);
        TORCH_CHECK_TYPE(index->scalar_type() == at::kLong, op, ": index must be int64, got ", index->scalar_type());
        TORCH_CHECK_VALUE(index->dim() >= 2, op, ": index must have shape (B, C, *S), got ", index->sizes());
        indices.back() = flattened(*index, 2);
      }
      const at::Tensor& shape = index.has_value() ? *index : map;
      TORCH_CHECK_VALUE(shape.size(0) == map.size(0) && shape.size(1) == map.size(1) &&
                            (size.empty() || shape.sizes() == at::IntArrayRef(size)),
                        op, ": masks must have the same shape, got ", shape.sizes());
      size = shape.sizes().vec();
    }
  }

  // A bit for each neuron.
  template <class T>
  void write(int64_t spatial, uint32_t* words, Stream stream) const {
    kernels::MaskWords<T> p{};
    p.batch = size[0], p.channels = size[1], p.spatial = spatial, p.words = words;
    for (size_t first = 0; first < maps.size(); first += kernels::kMasks) {
      p.count = static_cast<int>(std::min<size_t>(kernels::kMasks, maps.size() - first));
      p.onto = first > 0;
      for (int i = 0; i < p.count; ++i) {
        const at::Tensor& index = indices[first + i];
        p.masks[i] = {map_of<T>(maps[first + i]),
                      index.defined() ? map_of<int64_t>(index) : kernels::Map<int64_t>{nullptr, 0, 0, 0}};
      }
      kernels::mask_words(p, stream);
    }
  }
};

}  // namespace

PatternTensors sparse_pattern(const std::vector<std::tuple<at::Tensor, OptionalTensor>>& given) {
  constexpr const char* op = "sparse_pattern";
  const Masks masks(op, given);
  const at::Tensor& like = masks.maps.front();
  int64_t spatial = 1;
  for (size_t axis = 2; axis < masks.size.size(); ++axis) {
    spatial *= masks.size[axis];
  }
  const int64_t positions = masks.size[0] * spatial, width = (masks.size[1] + 31) / 32;
  TORCH_CHECK_VALUE(masks.size[1] <= INT32_MAX - 31, op, ": mask has ", masks.size[1], " channels, at most 2^31 fit");
  if (positions * width == 0) {
    return {at::zeros({positions + 1}, longs(like)), at::empty({0}, ints(like))};
  }
  return on_device(like, [&](Stream stream) -> PatternTensors {
    const at::Tensor words = at::empty({positions, width}, ints(like));
    with_type(like.scalar_type(),
              [&](auto zero) { masks.write<decltype(zero)>(spatial, data_of<uint32_t>(words), stream); });
    kernels::WordLists lists{data_of<uint32_t>(words), positions, width, nullptr};
    const at::Tensor begin = at::empty({lists.tiles() + 1}, longs(like));
    lists.begin = data_of<int64_t>(begin);
    kernels::count_words(lists, stream);
    const int64_t entries = read_on_host(scan(begin, lists.tiles(), stream));
    at::Tensor offsets = at::empty({positions + 1}, longs(like)), channels = at::empty({entries}, ints(like));
    kernels::list_words(lists, data_of<int64_t>(offsets), data_of<int32_t>(channels), stream);
    return {offsets, channels};
  });
}

at::Tensor sparse_from_dense(const at::Tensor& relevance_, const PatternTensors& pattern_) {
  constexpr const char* op = "sparse_from_dense";
  check_values(op, "relevance", relevance_);
  TORCH_CHECK_VALUE(relevance_.dim() >= 3, op, ": relevance must have shape (B, K, C, *S), got ", relevance_.sizes());
  const auto& [offsets, channels] = pattern_;
  const kernels::Pattern pattern = view(op, offsets, channels, relevance_);
  const int64_t spatial = spatial_of(relevance_, 3), entries = channels.numel(), targets = relevance_.size(1);
  TORCH_CHECK_VALUE(pattern.positions == relevance_.size(0) * spatial, op, ": the pattern has ", pattern.positions,
                    " positions, relevance ", relevance_.size(0) * spatial);
  return on_device(relevance_, [&](Stream stream) {
    const at::Tensor relevance = flattened(relevance_.resolve_neg(), 3);
    at::Tensor values = new_rows(entries, targets, relevance.options());
    with_type(values.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      kernels::sparse_from_dense<T>(dense_of<const T>(relevance), pattern,
                                    {data_of<T>(values), values.size(1), entries, targets}, stream);
    });
    return values;
  });
}

at::Tensor sparse_to_dense(const RowTensors& source, int64_t batch, int64_t targets, const std::vector<int64_t>& size) {
  constexpr const char* op = "sparse_to_dense";
  const at::Tensor& values = std::get<0>(source);
  check_values(op, "values", values);
  TORCH_CHECK_VALUE(!size.empty(), op, ": size must be (C, *S), got ()");
  TORCH_CHECK_VALUE(batch >= 0 && targets >= 0, op, ": batch and targets must not be negative, got ", batch, " and ",
                    targets);
  std::vector<int64_t> memory{batch, targets};
  memory.insert(memory.end(), size.begin() + 1, size.end());
  memory.push_back(size[0]);
  return on_device(values, [&](Stream stream) {
    at::Tensor dense = at::empty(memory, values.options()).movedim(-1, 2);
    const int64_t positions = std::get<2>(source).numel() - 1;
    TORCH_CHECK_VALUE(positions == batch * spatial_of(dense, 3), op, ": the pattern has ", positions,
                      " positions, the result ", batch * spatial_of(dense, 3));
    with_type(values.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      kernels::sparse_to_dense<T>(view<T>(op, source, targets), dense_of<T>(dense), stream);
    });
    return dense;
  });
}

at::Tensor sparse_sum(const std::vector<SummandTensors>& sources, const PatternTensors& pattern_, int64_t batch,
                      int64_t targets) {
  constexpr const char* op = "sparse_sum";
  TORCH_CHECK_VALUE(!sources.empty(), op, ": nothing to add");
  const at::Tensor& like = std::get<0>(sources.front());
  check_values(op, "values", like);
  const auto& [offsets, channels] = pattern_;
  const kernels::Pattern pattern = view(op, offsets, channels, like);
  TORCH_CHECK_VALUE(targets >= 0, op, ": targets must not be negative, got ", targets);
  TORCH_CHECK_VALUE(batch > 0 ? pattern.positions % batch == 0 : batch == 0 && pattern.positions == 0, op, ": ",
                    pattern.positions, " positions are no whole number for each sample of a batch of ", batch);
  return on_device(like, [&](Stream stream) {
    const Summands summands(op, sources, like, batch, pattern.positions);
    at::Tensor values = new_rows(channels.numel(), targets, like.options());
    with_type(like.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      const std::vector<kernels::Summand<T>> views = summands.views<T>(op, targets);
      kernels::Sum<T> p{};
      p.pattern = pattern;
      p.spatial = batch == 0 ? 0 : pattern.positions / batch;
      p.to = {data_of<T>(values), values.size(1), values.size(0), targets};
      for (size_t first = 0; first < views.size(); first += kernels::kSources) {
        p.count = static_cast<int>(std::min<size_t>(kernels::kSources, views.size() - first));
        p.onto = first > 0;
        std::copy_n(views.begin() + static_cast<int64_t>(first), p.count, p.sources);
        kernels::sparse_sum<T>(p, stream);
      }
    });
    return values;
  });
}

GatherTensors sparse_winners(const at::Tensor& index_, const PatternTensors& pooled_,
                             const std::vector<int64_t>& input_size, const std::vector<int64_t>& kernel_size,
                             const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                             const std::vector<int64_t>& dilation) {
  constexpr const char* op = "sparse_winners";
  check_device(op, "index", index_);
  TORCH_CHECK_TYPE(index_.scalar_type() == at::kLong, op, ": index must be int64, got ", index_.scalar_type());
  TORCH_CHECK_VALUE(index_.dim() >= 2, op, ": index must have shape (B, C, *S'), got ", index_.sizes());
  const auto& [pooled_offsets, pooled_channels] = pooled_;
  const kernels::Pattern pooled = view(op, pooled_offsets, pooled_channels, index_);
  TORCH_CHECK_VALUE(pooled.positions == index_.size(0) * spatial_of(index_, 2), op, ": the pattern has ",
                    pooled.positions, " positions, index has shape ", index_.sizes());
  const kernels::Window window =
      window_of(op, input_size, index_.sizes().slice(2), kernel_size, stride, padding, dilation, false);
  const int64_t positions = index_.size(0) * inputs_of(window), width = (index_.size(1) + 31) / 32;
  TORCH_CHECK_VALUE(index_.size(1) <= INT32_MAX - 31 && inputs_of(window) * width <= INT32_MAX, op, ": a sample of ",
                    input_size, " times ", index_.size(1), " channels is too large: 2^36 neurons fit");
  return on_device(index_, [&](Stream stream) -> GatherTensors {
    const at::Tensor index = flattened(index_, 2);
    kernels::Winners p{map_of<int64_t>(index),
                       pooled,
                       kernels::PoolWindow(window),
                       index.size(0),
                       index.size(1),
                       Divisor(std::max<int64_t>(1, width)),
                       nullptr,
                       nullptr};
    if (p.items() == 0) {
      return {at::zeros({positions + 1}, longs(index)), at::empty({0}, ints(index)), at::zeros({1}, longs(index)),
              at::empty({0}, longs(index))};
    }
    const at::Tensor entry_counts = at::empty({p.items() + 1}, longs(index)), row_counts = at::empty_like(entry_counts);
    p.entries = data_of<int64_t>(entry_counts), p.rows = data_of<int64_t>(row_counts);
    kernels::count_winners(p, stream);
    const at::Tensor entries = scan(entry_counts, p.items(), stream), all = scan(row_counts, p.items(), stream);
    const int64_t count = read_on_host(entries), taken = read_on_host(all);
    at::Tensor offsets = at::empty({positions + 1}, longs(index)), channels = at::empty({count}, ints(index));
    at::Tensor starts = at::empty({count + 1}, longs(index)), rows = at::empty({taken}, longs(index));
    kernels::list_winners(
        p, {data_of<int64_t>(offsets), data_of<int32_t>(channels), data_of<int64_t>(starts), data_of<int64_t>(rows)},
        stream);
    return {offsets, channels, starts, rows};
  });
}

GatherTensors sparse_windows(const PatternTensors& wanted_, const PatternTensors& pooled_, int64_t batch,
                             const std::vector<int64_t>& input_size, const std::vector<int64_t>& output_size,
                             const std::vector<int64_t>& kernel_size, const std::vector<int64_t>& stride,
                             const std::vector<int64_t>& padding) {
  constexpr const char* op = "sparse_windows";
  const auto& [wanted_offsets, wanted_channels] = wanted_;
  const auto& [pooled_offsets, pooled_channels] = pooled_;
  const at::Tensor& like = wanted_offsets;
  check_device(op, "offsets", like);
  const kernels::Pattern wanted = view(op, wanted_offsets, wanted_channels, like);
  const kernels::Pattern pooled = view(op, pooled_offsets, pooled_channels, like);
  const std::vector<int64_t> dilation(kernel_size.size(), 1);
  const kernels::Window w = window_of(op, input_size, output_size, kernel_size, stride, padding, dilation, false);
  TORCH_CHECK_VALUE(batch >= 0 && wanted.positions == batch * inputs_of(w) && pooled.positions == batch * outputs_of(w),
                    op, ": patterns have ", wanted.positions, " and ", pooled.positions, " positions, sizes ask for ",
                    batch * inputs_of(w), " and ", batch * outputs_of(w));
  const bool once = !overlaps(w);  // each entry has one row at most
  return on_device(like, [&](Stream stream) -> GatherTensors {
    const int64_t all = wanted_channels.numel();
    const at::Tensor kept = at::empty({all + 1}, longs(like));
    const at::Tensor counts = once ? at::Tensor() : at::empty_like(kept);
    const kernels::Windows p{wanted,
                             pooled,
                             kernels::PoolWindow(w),
                             batch,
                             all,
                             data_of<int64_t>(kept),
                             once ? nullptr : data_of<int64_t>(counts)};
    kernels::count_windows(p, stream);
    const int64_t count = read_on_host(scan(kept, all, stream));
    const int64_t taken = once ? count : read_on_host(scan(counts, all, stream));
    at::Tensor rows = at::empty({taken}, longs(like));
    kernels::Lists lists{nullptr, nullptr, nullptr, data_of<int64_t>(rows)};
    if (once && count == all) {
      kernels::list_windows(p, lists, stream);
      return {wanted_offsets, wanted_channels, at::empty({0}, longs(like)), rows};
    }
    at::Tensor offsets = at::empty_like(wanted_offsets), channels = at::empty({count}, ints(like));
    at::Tensor starts = at::empty({once ? 0 : count + 1}, longs(like));
    lists.offsets = data_of<int64_t>(offsets), lists.channels = data_of<int32_t>(channels);
    lists.starts = once ? nullptr : data_of<int64_t>(starts);
    kernels::list_windows(p, lists, stream);
    return {offsets, channels, starts, rows};
  });
}

at::Tensor sparse_gather_sum(const RowTensors& source, const at::Tensor& starts, const at::Tensor& rows,
                             int64_t targets) {
  constexpr const char* op = "sparse_gather_sum";
  const at::Tensor& values = std::get<0>(source);
  check_values(op, "values", values);
  check_same_device(op, "starts", starts, values);
  check_same_device(op, "rows", rows, values);
  TORCH_CHECK_VALUE(starts.scalar_type() == at::kLong && starts.is_contiguous() && starts.numel() >= 1 &&
                        rows.scalar_type() == at::kLong && rows.is_contiguous(),
                    op, ": starts and rows must be contiguous int64 tensors");
  TORCH_CHECK_VALUE(targets >= 0, op, ": targets must not be negative, got ", targets);
  const int64_t entries = starts.numel() - 1;
  return on_device(values, [&](Stream stream) {
    at::Tensor result = new_rows(entries, targets, values.options());
    with_type(values.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      kernels::sparse_gather_sum<T>({view<T>(op, source, targets),
                                     data_of<int64_t>(starts),
                                     data_of<int64_t>(rows),
                                     {data_of<T>(result), result.size(1), entries, targets}},
                                    stream);
    });
    return result;
  });
}

}  // namespace fastlrp::edge::cuda
