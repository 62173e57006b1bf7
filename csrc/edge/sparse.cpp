#include "sparse.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <numeric>

#include "../common/memory.h"
#include "../cpu/sparse.h"

namespace fastlrp::edge {
namespace {

// As many channels per block as keep a float32 slab of the weight within 32 KB.
constexpr int64_t kBlockOut = 128, kBlockIn = 64;

// Smaller buffers the C library keeps by itself.
constexpr size_t kPooledBytes = size_t{1} << 20;

int64_t round_up(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

void check_values(const char* op, const char* name, const at::Tensor& tensor) {
  check_cpu(op, name, tensor);
  check_float(op, name, tensor);
}

void check_like(const char* op, const char* name, const at::Tensor& tensor, const at::Tensor& like) {
  check_cpu(op, name, tensor);
  TORCH_CHECK_TYPE(tensor.scalar_type() == like.scalar_type(), op, ": ", name, " must be ", like.scalar_type(),
                   ", got ", tensor.scalar_type());
}

cpu::Pattern view(const char* op, const at::Tensor& offsets, const at::Tensor& channels) {
  check_cpu(op, "offsets", offsets);
  check_cpu(op, "channels", channels);
  TORCH_CHECK_TYPE(offsets.scalar_type() == at::kLong && channels.scalar_type() == at::kInt, op,
                   ": a pattern has int64 offsets and int32 channels, got ", offsets.scalar_type(), " and ",
                   channels.scalar_type());
  TORCH_CHECK_VALUE(offsets.dim() == 1 && offsets.numel() >= 1 && offsets.is_contiguous() && channels.is_contiguous(),
                    op, ": offsets must be contiguous with one entry more than there are positions");
  const int64_t positions = offsets.numel() - 1;
  const int64_t* data = offsets.const_data_ptr<int64_t>();
  TORCH_CHECK_VALUE(data[positions] == channels.numel(), op, ": the last offset (", data[positions],
                    ") must be the number of channels (", channels.numel(), ")");
  return {data, channels.const_data_ptr<int32_t>(), positions};
}

template <class T>
cpu::Rows<T> view(const char* op, const at::Tensor& values, const OptionalTensor& rows, const at::Tensor& offsets,
                  const at::Tensor& channels, int64_t targets) {
  check_cpu(op, "values", values);
  const cpu::Pattern pattern = view(op, offsets, channels);
  TORCH_CHECK_VALUE(targets >= 0, op, ": targets must not be negative, got ", targets);
  TORCH_CHECK_VALUE(values.dim() == 2 && values.size(1) >= targets && (values.size(1) <= 1 || values.stride(1) == 1),
                    op, ": values must be rows of at least ", targets, " targets, got ", values.sizes());
  if (rows.has_value()) {
    TORCH_CHECK_VALUE(rows->scalar_type() == at::kLong && rows->is_contiguous() && rows->numel() == channels.numel(),
                      op, ": rows must be int64, one per entry of the pattern");
  } else {
    TORCH_CHECK_VALUE(values.size(0) == channels.numel(), op, ": values must have ", channels.numel(), " rows, got ",
                      values.size(0));
  }
  return {values.const_data_ptr<T>(), values.stride(0), rows.has_value() ? rows->const_data_ptr<int64_t>() : nullptr,
          pattern};
}

// (B, C, *S) whose spatial axes can be numbered with one stride; copied if they cannot.
at::Tensor flattened(const at::Tensor& map, int64_t first_axis) {
  int64_t stride = -1, size = 1;  // a stride of 0 is that of an expanded axis
  for (int64_t axis = map.dim() - 1; axis >= first_axis; --axis) {
    if (map.size(axis) == 1) {
      continue;
    }
    if (stride >= 0 && map.stride(axis) != stride * size) {
      return map.contiguous();
    }
    stride = stride < 0 ? map.stride(axis) : stride;
    size *= map.size(axis);
  }
  return map;
}

int64_t position_stride(const at::Tensor& map, int64_t first_axis) {
  for (int64_t axis = map.dim() - 1; axis >= first_axis; --axis) {
    if (map.size(axis) != 1) {
      return map.stride(axis);
    }
  }
  return 1;
}

int64_t spatial_of(const at::Tensor& map, int64_t first_axis) {
  int64_t size = 1;
  for (int64_t axis = first_axis; axis < map.dim(); ++axis) {
    size *= map.size(axis);
  }
  return size;
}

// The tensor must outlive the view.
template <class T>
cpu::Map<T> map_of(const at::Tensor& map) {
  return {map.const_data_ptr<T>(), map.stride(0), map.stride(1), position_stride(map, 2)};
}

at::Tensor new_rows(int64_t entries, int64_t targets, const at::TensorOptions& options) {
  const std::vector<int64_t> size{entries, round_up(targets, cpu::kLanes)};
  const size_t bytes = static_cast<size_t>(size[0] * size[1]) * options.dtype().itemsize();
  if (bytes < kPooledBytes) {
    return at::empty(size, options);
  }
  void* data = BufferPool::shared().acquire(bytes);
  return at::from_blob(data, size, [](void* released) { BufferPool::shared().release(released); }, options);
}

template <class Launch>
void dispatch(const at::Tensor& values, Launch&& launch) {
  values.scalar_type() == at::kFloat ? launch(0.0f) : launch(0.0);
}

cpu::Window window_of(const char* op, const std::vector<int64_t>& in, const std::vector<int64_t>& out,
                      const std::vector<int64_t>& taps, const std::vector<int64_t>& stride,
                      const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation, bool transposed) {
  const size_t n = in.size();
  TORCH_CHECK_VALUE(n <= 3 && out.size() == n && taps.size() == n && stride.size() == n && padding.size() == n &&
                        dilation.size() == n,
                    op, ": sizes, stride, padding and dilation must have one entry per spatial axis, at most 3");
  cpu::Window window{{1, 1, 1}, {1, 1, 1}, {1, 1, 1}, {1, 1, 1}, {0, 0, 0}, {1, 1, 1}, transposed};
  for (size_t i = 0; i < n; ++i) {
    const size_t axis = 3 - n + i;
    TORCH_CHECK_VALUE(in[i] >= 0 && out[i] >= 0, op, ": sizes must not be negative, got ", in[i], " and ", out[i]);
    TORCH_CHECK_VALUE(stride[i] >= 1 && dilation[i] >= 1 && padding[i] >= 0 && taps[i] >= 1, op,
                      ": stride, dilation and kernel size must be at least 1, padding at least 0");
    window.in[axis] = in[i], window.out[axis] = out[i], window.taps[axis] = taps[i];
    window.stride[axis] = stride[i], window.padding[axis] = padding[i], window.dilation[axis] = dilation[i];
  }
  return window;
}

cpu::Blocks packed_blocks(const at::Tensor& packed, const std::vector<int64_t>& channels) {
  const int64_t slab = packed.size(4) * packed.size(5);
  return {packed.size(0),        channels[0],    channels[1],
          packed.size(4),        packed.size(5), packed.size(2) * packed.size(3) * slab,
          packed.size(3) * slab, slab,           packed.size(5)};
}

// Few rows at a time, so that each can be read as a stream.
cpu::Blocks linear_blocks(const char* op, const at::Tensor& weight, const std::vector<int64_t>& channels) {
  constexpr int64_t kOut = 64, kIn = 2048;
  TORCH_CHECK_VALUE(
      weight.size(0) == channels[0] && weight.size(1) == channels[1] && weight.size(1) * kOut <= INT32_MAX, op,
      ": a linear weight must be (Co, Ci) with fewer than 2^25 input channels, got ", weight.sizes());
  const int64_t out = std::max<int64_t>(1, std::min(kOut, channels[0])),
                in = std::max<int64_t>(1, std::min(kIn, channels[1]));
  return {1, channels[0], channels[1], out, in, in, 0, out * channels[1], channels[1]};
}

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

// What a list of summands refers to, kept alive while the kernel runs.
struct Summands {
  const std::vector<SummandTensors>& sources;
  std::vector<at::Tensor> factors;

  Summands(const char* op, const std::vector<SummandTensors>& given, const at::Tensor& like, int64_t batch,
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

  template <class T>
  std::vector<cpu::Summand<T>> views(const char* op, int64_t targets) const {
    std::vector<cpu::Summand<T>> result;
    for (size_t i = 0; i < sources.size(); ++i) {
      const auto& [theirs, rows, offsets, channels, factor] = sources[i];
      result.push_back({view<T>(op, theirs, rows, offsets, channels, targets),
                        factors[i].defined() ? map_of<T>(factors[i]) : cpu::Map<T>{nullptr, 0, 0, 0}});
    }
    return result;
  }
};

}  // namespace

PatternTensors sparse_pattern(const std::vector<std::tuple<at::Tensor, OptionalTensor>>& masks) {
  constexpr const char* op = "sparse_pattern";
  TORCH_CHECK_VALUE(!masks.empty(), op, ": no mask given");
  const at::Tensor& like = std::get<0>(masks.front());
  check_values(op, "mask", like);
  std::vector<at::Tensor> maps, indices;
  std::vector<int64_t> size;
  for (const auto& [map, index] : masks) {
    check_like(op, "mask", map, like);
    TORCH_CHECK_VALUE(map.dim() >= 2, op, ": mask must have shape (B, C, *S), got ", map.sizes());
    maps.push_back(flattened(map.resolve_neg(), 2));
    indices.emplace_back();
    if (index.has_value()) {
      check_cpu(op, "index", *index);
      TORCH_CHECK_TYPE(index->scalar_type() == at::kLong, op, ": index must be int64, got ", index->scalar_type());
      indices.back() = flattened(*index, 2);
    }
    const at::Tensor& shape = index.has_value() ? *index : map;
    TORCH_CHECK_VALUE(shape.dim() >= 2 && shape.size(0) == map.size(0) && shape.size(1) == map.size(1) &&
                          (size.empty() || shape.sizes() == at::IntArrayRef(size)),
                      op, ": masks must have the same shape, got ", shape.sizes());
    size = shape.sizes().vec();
  }
  const int64_t batch = size[0], channels = size[1];
  int64_t spatial = 1;
  for (size_t axis = 2; axis < size.size(); ++axis) {
    spatial *= size[axis];
  }
  cpu::Entries found;
  dispatch(like, [&](auto zero) {
    using T = decltype(zero);
    std::vector<cpu::Mask<T>> views;
    for (size_t i = 0; i < maps.size(); ++i) {
      views.push_back({map_of<T>(maps[i]),
                       indices[i].defined() ? map_of<int64_t>(indices[i]) : cpu::Map<int64_t>{nullptr, 0, 0, 0}});
    }
    found = cpu::sparse_pattern<T>(views, batch, channels, spatial);
  });
  return {tensor_of(std::move(found.offsets), at::kLong), tensor_of(std::move(found.channels), at::kInt)};
}

at::Tensor sparse_from_dense(const at::Tensor& relevance_, const PatternTensors& pattern_) {
  constexpr const char* op = "sparse_from_dense";
  check_values(op, "relevance", relevance_);
  TORCH_CHECK_VALUE(relevance_.dim() >= 3, op, ": relevance must have shape (B, K, C, *S), got ", relevance_.sizes());
  const at::Tensor relevance = flattened(relevance_.resolve_neg(), 3);
  const cpu::Pattern pattern = view(op, std::get<0>(pattern_), std::get<1>(pattern_));
  const int64_t spatial = spatial_of(relevance, 3);
  TORCH_CHECK_VALUE(pattern.positions == relevance.size(0) * spatial, op, ": the pattern has ", pattern.positions,
                    " positions, relevance ", relevance.size(0) * spatial);
  at::Tensor values = new_rows(std::get<1>(pattern_).numel(), relevance.size(1), relevance.options());
  dispatch(values, [&](auto zero) {
    using T = decltype(zero);
    cpu::sparse_from_dense<T>(
        {relevance.const_data_ptr<T>(), relevance.size(0), relevance.size(1), spatial, relevance.stride(0),
         relevance.stride(1), relevance.stride(2), position_stride(relevance, 3)},
        pattern, values.mutable_data_ptr<T>(), values.size(1));
  });
  return values;
}

at::Tensor sparse_to_dense(const RowTensors& source, int64_t batch, int64_t targets, const std::vector<int64_t>& size) {
  constexpr const char* op = "sparse_to_dense";
  const auto& [values, rows, offsets, channels] = source;
  check_values(op, "values", values);
  TORCH_CHECK_VALUE(!size.empty(), op, ": size must be (C, *S), got ()");
  std::vector<int64_t> memory{batch, targets};
  memory.insert(memory.end(), size.begin() + 1, size.end());
  memory.push_back(size[0]);
  at::Tensor dense = at::empty(memory, values.options()).movedim(-1, 2);
  const int64_t spatial = spatial_of(dense, 3);
  TORCH_CHECK_VALUE(offsets.numel() == batch * spatial + 1, op, ": the pattern has ", offsets.numel() - 1,
                    " positions, the result ", batch * spatial);
  dispatch(values, [&](auto zero) {
    using T = decltype(zero);
    cpu::sparse_to_dense<T>(view<T>(op, values, rows, offsets, channels, targets), size[0],
                            {dense.mutable_data_ptr<T>(), batch, targets, spatial, dense.stride(0), dense.stride(1),
                             dense.stride(2), position_stride(dense, 3)});
  });
  return dense;
}

at::Tensor sparse_sum(const std::vector<SummandTensors>& sources, const PatternTensors& pattern_, int64_t batch,
                      int64_t targets) {
  constexpr const char* op = "sparse_sum";
  TORCH_CHECK_VALUE(!sources.empty(), op, ": nothing to add");
  const at::Tensor& like = std::get<0>(sources.front());
  check_values(op, "values", like);
  const cpu::Pattern pattern = view(op, std::get<0>(pattern_), std::get<1>(pattern_));
  TORCH_CHECK_VALUE(targets >= 0, op, ": targets must not be negative, got ", targets);
  TORCH_CHECK_VALUE(batch > 0 ? pattern.positions % batch == 0 : batch == 0 && pattern.positions == 0, op, ": ",
                    pattern.positions, " positions are no whole number for each sample of a batch of ", batch);
  at::Tensor values = new_rows(std::get<1>(pattern_).numel(), targets, like.options());
  const Summands summands(op, sources, like, batch, pattern.positions);
  dispatch(values, [&](auto zero) {
    using T = decltype(zero);
    cpu::sparse_sum<T>(summands.views<T>(op, targets), pattern, batch, targets, values.mutable_data_ptr<T>(),
                       values.stride(0));
  });
  return values;
}

GatherTensors sparse_winners(const at::Tensor& index_, const PatternTensors& pooled_,
                             const std::vector<int64_t>& input_size, const std::vector<int64_t>& kernel_size,
                             const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                             const std::vector<int64_t>& dilation) {
  constexpr const char* op = "sparse_winners";
  check_cpu(op, "index", index_);
  TORCH_CHECK_TYPE(index_.scalar_type() == at::kLong, op, ": index must be int64, got ", index_.scalar_type());
  TORCH_CHECK_VALUE(index_.dim() >= 2, op, ": index must have shape (B, C, *S'), got ", index_.sizes());
  const at::Tensor index = flattened(index_, 2);
  const cpu::Pattern pooled = view(op, std::get<0>(pooled_), std::get<1>(pooled_));
  TORCH_CHECK_VALUE(pooled.positions == index.size(0) * spatial_of(index, 2), op, ": the pattern has ",
                    pooled.positions, " positions, index has shape ", index.sizes());
  const cpu::Window window = window_of(op, input_size, {index.sizes().begin() + 2, index.sizes().end()}, kernel_size,
                                       stride, padding, dilation, false);
  return tensors_of(cpu::sparse_winners(map_of<int64_t>(index), pooled, window, index.size(0)));
}

GatherTensors sparse_windows(const PatternTensors& wanted_, const PatternTensors& pooled_, int64_t batch,
                             const std::vector<int64_t>& input_size, const std::vector<int64_t>& output_size,
                             const std::vector<int64_t>& kernel_size, const std::vector<int64_t>& stride,
                             const std::vector<int64_t>& padding) {
  constexpr const char* op = "sparse_windows";
  const cpu::Pattern wanted = view(op, std::get<0>(wanted_), std::get<1>(wanted_));
  const cpu::Pattern pooled = view(op, std::get<0>(pooled_), std::get<1>(pooled_));
  const std::vector<int64_t> dilation(kernel_size.size(), 1);
  const cpu::Window w = window_of(op, input_size, output_size, kernel_size, stride, padding, dilation, false);
  const int64_t inputs = w.in[0] * w.in[1] * w.in[2], outputs = w.out[0] * w.out[1] * w.out[2];
  TORCH_CHECK_VALUE(batch >= 0 && wanted.positions == batch * inputs && pooled.positions == batch * outputs, op,
                    ": patterns have ", wanted.positions, " and ", pooled.positions, " positions, sizes ask for ",
                    batch * inputs, " and ", batch * outputs);
  cpu::Gathered found = cpu::sparse_windows(wanted, pooled, w, batch);
  if (found.everything) {
    return {std::get<0>(wanted_), std::get<1>(wanted_), tensor_of(std::move(found.starts), at::kLong),
            tensor_of(std::move(found.rows), at::kLong)};
  }
  return tensors_of(std::move(found));
}

at::Tensor sparse_gather_sum(const RowTensors& source, const at::Tensor& starts, const at::Tensor& rows_,
                             int64_t targets) {
  constexpr const char* op = "sparse_gather_sum";
  const auto& [values, rows, offsets, channels] = source;
  check_values(op, "values", values);
  TORCH_CHECK_VALUE(starts.scalar_type() == at::kLong && starts.is_contiguous() && starts.numel() >= 1 &&
                        rows_.scalar_type() == at::kLong && rows_.is_contiguous(),
                    op, ": starts and rows must be contiguous int64 tensors");
  TORCH_CHECK_VALUE(targets >= 0, op, ": targets must not be negative, got ", targets);
  const int64_t entries = starts.numel() - 1;
  at::Tensor result = new_rows(entries, targets, values.options());
  dispatch(values, [&](auto zero) {
    using T = decltype(zero);
    cpu::sparse_gather_sum<T>(view<T>(op, values, rows, offsets, channels, targets), starts.const_data_ptr<int64_t>(),
                              rows_.const_data_ptr<int64_t>(), entries, targets, result.mutable_data_ptr<T>(),
                              result.stride(0));
  });
  return result;
}

at::Tensor sparse_pack(const at::Tensor& weight) {
  constexpr const char* op = "sparse_pack";
  check_values(op, "weight", weight);
  TORCH_CHECK_VALUE(weight.dim() == 4, op, ": weight must have shape (groups, Co, Ci, taps), got ", weight.sizes());
  const int64_t groups = weight.size(0), out = weight.size(1), in = weight.size(2), taps = weight.size(3);
  TORCH_CHECK_VALUE(out >= 1 && in >= 1, op, ": weight must have channels on both sides, got ", weight.sizes());
  const int64_t block_out = std::min(kBlockOut, out);
  const int64_t block_in = std::min(kBlockIn, in);
  const int64_t outs = round_up(out, block_out), ins = round_up(in, block_in);
  at::Tensor full = weight;
  if (outs != out || ins != in) {
    full = at::zeros({groups, outs, ins, taps}, weight.options());
    full.narrow(1, 0, out).narrow(2, 0, in).copy_(weight);
  }
  // (G, Ob, o, Ib, i, T) -> (G, Ib, T, Ob, o, i)
  return full.reshape({groups, outs / block_out, block_out, ins / block_in, block_in, taps})
      .permute({0, 3, 5, 1, 2, 4})
      .contiguous();
}

at::Tensor sparse_conv_relevance(const RowTensors& arriving, int64_t batch, int64_t targets,
                                 const std::vector<at::Tensor>& coefficients, const std::vector<at::Tensor>& weights,
                                 const std::vector<int64_t>& channels_per_group, const PatternTensors& leaving,
                                 const std::vector<int64_t>& input_size, const std::vector<int64_t>& output_size,
                                 const std::vector<int64_t>& kernel_size, const std::vector<int64_t>& stride,
                                 const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
                                 bool transposed, std::optional<int64_t> channels,
                                 const std::vector<at::Tensor>& factors_, const std::vector<SummandTensors>& initial,
                                 const OptionalTensor& other) {
  constexpr const char* op = "sparse_conv_relevance";
  const auto& [values, rows, offsets, out_channels] = arriving;
  check_values(op, "values", values);
  TORCH_CHECK_VALUE(targets >= 0, op, ": targets must not be negative, got ", targets);
  const cpu::Window window = window_of(op, input_size, output_size, kernel_size, stride, padding, dilation, transposed);
  const int64_t taps = window.taps[0] * window.taps[1] * window.taps[2];
  const int64_t inputs = window.in[0] * window.in[1] * window.in[2];
  const int64_t outputs = window.out[0] * window.out[1] * window.out[2];
  TORCH_CHECK_VALUE(
      !weights.empty() && weights.size() == coefficients.size() + other.has_value() && channels_per_group.size() == 2,
      op, ": expected a coefficient for each weight, and channels per group on both sides");
  const at::Tensor& first = weights.front();
  const bool linear = first.dim() == 2;
  TORCH_CHECK_VALUE(linear ? input_size.empty() : first.dim() == 6 && first.size(2) == taps, op,
                    ": weights must be packed by sparse_pack, or (Co, Ci) of a linear layer");
  const cpu::Blocks blocks =
      linear ? linear_blocks(op, first, channels_per_group) : packed_blocks(first, channels_per_group);
  TORCH_CHECK_VALUE(blocks.block_out >= 1 && blocks.block_in >= 1 && (linear || blocks.out_blocks() == first.size(3)) &&
                        blocks.in_blocks() == (linear ? blocks.in_blocks() : first.size(1)) &&
                        blocks.groups * blocks.out_channels <= INT32_MAX,
                    op, ": channels per group do not fit the packed weight");
  std::vector<at::Tensor> maps;
  for (const at::Tensor& weight : weights) {
    check_like(op, "weight", weight, values);
    TORCH_CHECK_VALUE(weight.sizes() == first.sizes() && weight.is_contiguous(), op,
                      ": all weights must be contiguous and have the same shape");
  }
  for (const at::Tensor& coefficient : coefficients) {
    check_like(op, "coefficient", coefficient, values);
    TORCH_CHECK_VALUE(coefficient.dim() >= 2 && coefficient.size(0) == batch &&
                          coefficient.size(1) == blocks.groups * blocks.out_channels &&
                          spatial_of(coefficient, 2) == outputs,
                      op, ": coefficient must have shape (B, Co, *S'), got ", coefficient.sizes());
    maps.push_back(flattened(coefficient.resolve_neg(), 2));
  }
  at::Tensor selector;
  if (other.has_value()) {
    check_like(op, "other", *other, values);
    TORCH_CHECK_VALUE(weights.size() == 2 && coefficients.front().sizes() == other->sizes(), op,
                      ": other needs two weights, and the coefficient's shape ", coefficients.front().sizes(), ", got ",
                      other->sizes());
    selector = flattened(other->resolve_neg(), 2);
    TORCH_CHECK_VALUE(static_cast<const char*>(weights[1].const_data_ptr()) ==
                              static_cast<const char*>(first.const_data_ptr()) + first.nbytes() &&
                          first.numel() <= INT32_MAX && blocks.in_channels * blocks.out_channels > 1,
                      op, ": the two weights that other chooses from must lie one behind the other in memory");
  }
  const cpu::Pattern pattern = view(op, std::get<0>(leaving), std::get<1>(leaving));
  TORCH_CHECK_VALUE(pattern.positions == batch * inputs && offsets.numel() == batch * outputs + 1, op,
                    ": patterns have ", offsets.numel() - 1, " and ", pattern.positions, " positions, sizes ask for ",
                    batch * outputs, " and ", batch * inputs);
  std::vector<at::Tensor> factors;
  at::Tensor result;
  if (channels.has_value()) {
    const int64_t folds = blocks.groups * blocks.in_channels / std::max<int64_t>(1, *channels);
    TORCH_CHECK_VALUE(*channels >= 1 && folds * *channels == blocks.groups * blocks.in_channels &&
                          (factors_.empty() || static_cast<int64_t>(factors_.size()) == folds),
                      op, ": channels must divide the input channels, with a factor for each fold");
    for (const at::Tensor& factor : factors_) {
      check_like(op, "factor", factor, values);
      TORCH_CHECK_VALUE(factor.dim() >= 2 && factor.size(0) == batch && factor.size(1) == *channels &&
                            spatial_of(factor, 2) == inputs,
                        op, ": factor must have shape (B, channels, *S), got ", factor.sizes());
      factors.push_back(flattened(factor.resolve_neg(), 2));
    }
    std::vector<int64_t> size{batch, targets, *channels};
    size.insert(size.end(), input_size.begin(), input_size.end());
    result = at::empty(size, values.options());
  } else {
    result = new_rows(std::get<1>(leaving).numel(), targets, values.options());
  }
  TORCH_CHECK_VALUE(channels.has_value() || factors_.empty(), op, ": factors belong to a dense result: give channels");
  TORCH_CHECK_VALUE(initial.size() <= 1 && (initial.empty() || !channels.has_value()), op,
                    ": a compact result can begin with one register, a dense one with none");
  const Summands beginning(op, initial, values, batch, pattern.positions);
  dispatch(values, [&](auto zero) {
    using T = decltype(zero);
    cpu::SparseConv<T> p{};
    p.initial = beginning.views<T>(op, targets);
    p.window = window;
    p.blocks = blocks;
    p.batch = batch;
    p.targets = targets;
    p.arriving = view<T>(op, values, rows, offsets, out_channels, targets);
    for (size_t i = 0; i < maps.size(); ++i) {
      p.products.push_back({weights[i].const_data_ptr<T>(), map_of<T>(maps[i])});
    }
    if (selector.defined()) {
      p.other = map_of<T>(selector);
      p.other_weight = weights[1].const_data_ptr<T>();
    }
    p.leaving = pattern;
    p.result = result.mutable_data_ptr<T>();
    p.dense = channels.has_value();
    if (p.dense) {
      p.channels = *channels;
      p.dense_batch = result.stride(0), p.dense_target = result.stride(1), p.dense_channel = result.stride(2);
      p.dense_position = position_stride(result, 3);
      for (const at::Tensor& factor : factors) {
        p.factors.push_back(map_of<T>(factor));
      }
    } else {
      p.result_stride = result.stride(0);
    }
    cpu::sparse_conv_relevance<T>(p);
  });
  return result;
}

}  // namespace fastlrp::edge
