#include "../../cuda/sparse_pattern.h"

#include <algorithm>

#include "../../cuda/scan.h"
#include "../../cuda/sparse_pool.h"
#include "../../cuda/sparse_rows.h"
#include "device.h"
#include "looked_at.h"
#include "sparse_views.h"

namespace fastlrp::edge::cuda {
namespace {

// The counts, the first `count` of which are written, become where each list begins; returns their sum's tensor.
Tensor scan(const Tensor& counts, int64_t count, Stream stream) {
  const Tensor scratch = empty({kernels::scan_scratch(count)}, counts);
  kernels::exclusive_scan(data_of<int64_t>(counts), count, data_of<int64_t>(scratch), stream);
  return counts.narrow(0, count, 1);
}

// A bit for each neuron.
template <class T>
void write_words(const Masks& masks, uint32_t* words, Stream stream) {
  kernels::MaskWords<T> p{};
  p.batch = masks.size[0], p.channels = masks.size[1], p.spatial = masks.spatial, p.words = words;
  for (size_t first = 0; first < masks.maps.size(); first += kernels::kMasks) {
    p.count = static_cast<int>(std::min<size_t>(kernels::kMasks, masks.maps.size() - first));
    p.onto = first > 0;
    for (int i = 0; i < p.count; ++i) {
      p.masks[i] = masks.view<T>(first + i);
    }
    kernels::mask_words(p, stream);
  }
}

// What is made here has version counters also in inference mode, and need not be looked at again.
struct Made {
  OutOfInferenceMode counted;

  PatternTensors pattern(PatternTensors made, int64_t limit) const {
    looked_at().add(made.offsets, made.channels, limit);
    return made;
  }

  // Lists of rows of so many entries.
  GatherTensors lists(GatherTensors made, int64_t limit, int64_t entries) const {
    looked_at().add(made.offsets, made.channels, limit);
    looked_at().add(made.starts, made.rows, entries);
    looked_at().add(made.rows, made.rows, entries);
    return made;
  }
};

PatternTensors sparse_pattern(const std::vector<MaskTensors>& given) {
  const Masks masks({kCuda, "sparse_pattern"}, given);
  const Tensor& like = masks.maps.front();
  const int64_t positions = masks.positions, width = (masks.size[1] + 31) / 32;
  const Made made;
  if (positions * width == 0) {
    return made.pattern({zeros({positions + 1}, like, kLong), empty({0}, like, kInt)}, 0);
  }
  return on_device(like, [&](Stream stream) {
    const Tensor words = empty({positions, width}, like, kInt);
    with_type(like.scalar_type(),
              [&](auto zero) { write_words<decltype(zero)>(masks, data_of<uint32_t>(words), stream); });
    kernels::WordLists lists{data_of<uint32_t>(words), positions, width, nullptr};
    const Tensor begin = empty({lists.tiles() + 1}, like, kLong);
    lists.begin = data_of<int64_t>(begin);
    kernels::count_words(lists, stream);
    const int64_t entries = read_on_host(scan(begin, lists.tiles(), stream));
    Tensor offsets = empty({positions + 1}, like, kLong), channels = empty({entries}, like, kInt);
    kernels::list_words(lists, data_of<int64_t>(offsets), data_of<int32_t>(channels), stream);
    return made.pattern({offsets, channels}, masks.size[1]);
  });
}

Tensor sparse_from_dense(const Tensor& relevance_, const PatternTensors& pattern) {
  const DenseArguments a({kCuda, "sparse_from_dense"}, relevance_, pattern);
  const int64_t entries = a.entries, targets = relevance_.size(1);
  return on_device(relevance_, [&](Stream stream) {
    const Tensor relevance = flattened(relevance_.resolve_neg(), 3);
    Tensor values = new_rows(entries, targets, relevance);
    with_type(values.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      kernels::sparse_from_dense<T>(dense_of<const T>(relevance), a.pattern,
                                    {data_of<T>(values), values.size(1), entries, targets}, stream);
    });
    return values;
  });
}

Tensor sparse_to_dense(const RowTensors& source, int64_t batch, int64_t targets, const Sizes& size) {
  const ToDenseArguments a({kCuda, "sparse_to_dense"}, source, batch, targets, size);
  const Tensor& values = source.values;
  return on_device(values, [&](Stream stream) {
    Tensor dense = empty(a.memory, values).movedim(-1, 2);
    with_type(values.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      kernels::sparse_to_dense<T>(rows_of<T>(source, a.pattern), dense_of<T>(dense), stream);
    });
    return dense;
  });
}

Tensor sparse_sum(const std::vector<SummandTensors>& sources, const PatternTensors& pattern, int64_t batch,
                  int64_t targets) {
  const SumArguments a({kCuda, "sparse_sum"}, sources, pattern, batch, targets);
  const Tensor& like = sources.front().values;
  return on_device(like, [&](Stream stream) {
    Tensor values = new_rows(pattern.channels.numel(), targets, like);
    with_type(like.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      const std::vector<kernels::Summand<T>> views = a.summands.views<T>();
      kernels::Sum<T> p{};
      p.pattern = a.pattern;
      p.spatial = batch == 0 ? 0 : a.pattern.positions / batch;
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

GatherTensors sparse_winners(const Tensor& index_, const PatternTensors& pooled, const Sizes& input_size,
                             const Sizes& kernel_size, const Sizes& stride, const Sizes& padding,
                             const Sizes& dilation) {
  constexpr const char* op = "sparse_winners";
  const WinnersArguments a({kCuda, op}, index_, pooled, {input_size, {}, kernel_size, stride, padding, dilation});
  const int64_t batch = index_.size(0), channel_count = index_.size(1);
  const int64_t inputs = a.window.inputs(), positions = batch * inputs,
                width = channel_count / 32 + (channel_count % 32 > 0);
  REQUIRE_VALUE(channel_count <= INT32_MAX - 31 && times(inputs, width) <= INT32_MAX, op, ": a sample of ",
                Ints(input_size), " times ", channel_count, " channels is too large: 2^36 neurons fit");
  const Made made;
  return on_device(index_, [&](Stream stream) -> GatherTensors {
    const Tensor index = flattened(index_, 2);
    kernels::Winners p{map_of<int64_t>(index),
                       a.pooled,
                       kernels::PoolWindow(narrowed(a.window)),
                       batch,
                       channel_count,
                       Divisor(std::max<int64_t>(1, width)),
                       nullptr,
                       nullptr};
    if (p.items() == 0) {
      return made.lists({zeros({positions + 1}, index, kLong), empty({0}, index, kInt), zeros({1}, index, kLong),
                         empty({0}, index, kLong)},
                        0, 0);
    }
    const Tensor entry_counts = empty({p.items() + 1}, index, kLong), row_counts = empty_like(entry_counts);
    p.entries = data_of<int64_t>(entry_counts), p.rows = data_of<int64_t>(row_counts);
    kernels::count_winners(p, stream);
    const Tensor entries = scan(entry_counts, p.items(), stream), all = scan(row_counts, p.items(), stream);
    const int64_t count = read_on_host(entries), taken = read_on_host(all);
    Tensor offsets = empty({positions + 1}, index, kLong), channels = empty({count}, index, kInt);
    Tensor starts = empty({count + 1}, index, kLong), rows = empty({taken}, index, kLong);
    kernels::list_winners(
        p, {data_of<int64_t>(offsets), data_of<int32_t>(channels), data_of<int64_t>(starts), data_of<int64_t>(rows)},
        stream);
    return made.lists({offsets, channels, starts, rows}, channel_count, pooled.channels.numel());
  });
}

GatherTensors sparse_windows(const PatternTensors& wanted, const PatternTensors& pooled, int64_t batch,
                             const Sizes& input_size, const Sizes& output_size, const Sizes& kernel_size,
                             const Sizes& stride, const Sizes& padding) {
  const WindowsArguments a({kCuda, "sparse_windows"}, wanted, pooled, batch,
                           {input_size, output_size, kernel_size, stride, padding, Sizes(kernel_size.size(), 1)});
  const Tensor& like = wanted.offsets;
  const bool once = !overlaps(a.window);  // each entry has one row at most
  const Made made;
  return on_device(like, [&](Stream stream) -> GatherTensors {
    const int64_t all = wanted.channels.numel(), entries = pooled.channels.numel();
    const int64_t limit = looked_at().limit(wanted.offsets, wanted.channels);
    const Tensor kept = empty({all + 1}, like, kLong);
    const Tensor counts = once ? Tensor() : empty_like(kept);
    const kernels::Windows p{a.wanted,
                             a.pooled,
                             kernels::PoolWindow(narrowed(a.window)),
                             batch,
                             all,
                             data_of<int64_t>(kept),
                             once ? nullptr : data_of<int64_t>(counts)};
    kernels::count_windows(p, stream);
    const int64_t count = read_on_host(scan(kept, all, stream));
    const int64_t taken = once ? count : read_on_host(scan(counts, all, stream));
    Tensor rows = empty({taken}, like, kLong);
    kernels::Lists lists{nullptr, nullptr, nullptr, data_of<int64_t>(rows)};
    if (once && count == all) {
      kernels::list_windows(p, lists, stream);
      return made.lists({wanted.offsets, wanted.channels, empty({0}, like, kLong), rows}, limit, entries);
    }
    Tensor offsets = empty_like(wanted.offsets), channels = empty({count}, like, kInt);
    Tensor starts = empty({once ? 0 : count + 1}, like, kLong);
    lists.offsets = data_of<int64_t>(offsets), lists.channels = data_of<int32_t>(channels);
    lists.starts = once ? nullptr : data_of<int64_t>(starts);
    kernels::list_windows(p, lists, stream);
    return made.lists({offsets, channels, starts, rows}, limit, entries);
  });
}

Tensor sparse_gather_sum(const RowTensors& source, const Tensor& starts, const Tensor& rows, int64_t targets) {
  const GatherArguments a({kCuda, "sparse_gather_sum"}, source, starts, rows, targets);
  const Tensor& values = source.values;
  return on_device(values, [&](Stream stream) {
    Tensor result = new_rows(a.lists, targets, values);
    with_type(values.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      kernels::sparse_gather_sum<T>({rows_of<T>(source, a.pattern),
                                     data_of<int64_t>(starts),
                                     data_of<int64_t>(rows),
                                     {data_of<T>(result), result.size(1), a.lists, targets}},
                                    stream);
    });
    return result;
  });
}

}  // namespace

const SparsePatternFunctions kSparsePattern{sparse_pattern, sparse_from_dense, sparse_to_dense,  sparse_sum,
                                            sparse_winners, sparse_windows,    sparse_gather_sum};

}  // namespace fastlrp::edge::cuda
