#include "sparse_arguments.h"

#include <algorithm>

#include "../common/pattern_check.h"

namespace fastlrp::edge {
namespace {

// On the host; a copy waits for the device.
Tensor on_host(const Check& check, const Tensor& tensor) {
  if (check.kernels.known != nullptr) {
    check.kernels.known->looked();
  }
  return tensor.is_cpu() ? tensor : tensor.cpu();
}

bool is_known(const Check& check, const Tensor& first, const Tensor& second, int64_t limit) {
  return check.kernels.known != nullptr && check.kernels.known->limit(first, second) <= limit;
}

void remember(const Check& check, const Tensor& first, const Tensor& second, int64_t limit) {
  if (check.kernels.known != nullptr) {
    check.kernels.known->add(first, second, limit);
  }
}

Pattern view(const Tensor& offsets, const Tensor& channels) {
  return {memory_of<const int64_t>(offsets), memory_of<const int32_t>(channels), offsets.numel() - 1};
}

void check_fault(const Check& check, const char* name, const std::string& fault) {
  REQUIRE_VALUE(fault.empty(), check.op, ": ", name, " cannot be followed: ", fault);
}

// Of a register's offsets, which may not have been checked.
int64_t positions_of(const Check& check, const Tensor& offsets) {
  check.tensor("offsets", offsets);
  return offsets.numel() - 1;
}

void check_list(const Check& check, const char* name, const Tensor& tensor, const Tensor& like) {
  check.beside(name, tensor, like);
  REQUIRE_VALUE(tensor.scalar_type() == kLong && tensor.is_contiguous(), check.op,
                ": starts and rows must be contiguous int64 tensors, got ", name, " of ", tensor.scalar_type(),
                " and shape ", tensor.sizes());
}

}  // namespace

Pattern pattern_of(const Check& check, const char* name, const PatternTensors& tensors, const Tensor& like,
                   int64_t limit) {
  const auto& [offsets, channels] = tensors;
  check.beside("offsets", offsets, like);
  check.beside("channels", channels, like);
  REQUIRE_TYPE(offsets.scalar_type() == kLong && channels.scalar_type() == kInt, check.op,
               ": a pattern has int64 offsets and int32 channels, got ", offsets.scalar_type(), " and ",
               channels.scalar_type());
  REQUIRE_VALUE(offsets.dim() == 1 && offsets.numel() >= 1 && offsets.is_contiguous() && channels.dim() == 1 &&
                    channels.is_contiguous(),
                check.op,
                ": offsets must be contiguous with one entry more than there are positions, and channels "
                "contiguous, got shapes ",
                offsets.sizes(), " and ", channels.sizes());
  limit = std::min<int64_t>(limit, INT32_MAX);
  if (!is_known(check, offsets, channels, limit)) {
    const Tensor host_offsets = on_host(check, offsets), host_channels = on_host(check, channels);
    check_fault(check, name, pattern_fault(view(host_offsets, host_channels), channels.numel(), limit));
    remember(check, offsets, channels, limit);
  }
  return view(offsets, channels);
}

void check_rows(const Check& check, const char* name, const RowTensors& source, int64_t targets) {
  const auto& [values, rows, offsets, channels] = source;
  check.values("values", values);
  check.not_negative("targets", targets);
  REQUIRE_VALUE(values.dim() == 2 && values.size(1) >= targets && (values.size(1) <= 1 || values.stride(1) == 1),
                check.op, ": values must be rows of at least ", targets, " targets, got ", values.sizes());
  if (!rows.has_value()) {
    REQUIRE_VALUE(values.size(0) == channels.numel(), check.op, ": values must have ", channels.numel(), " rows, got ",
                  values.size(0));
    return;
  }
  check.beside("rows", *rows, values);
  REQUIRE_VALUE(rows->scalar_type() == kLong && rows->is_contiguous() && rows->numel() == channels.numel(), check.op,
                ": rows must be int64, one per entry of the pattern, got ", rows->scalar_type(), " of shape ",
                rows->sizes(), " for ", channels.numel(), " entries");
  if (!is_known(check, *rows, *rows, values.size(0))) {
    const Tensor host = on_host(check, *rows);
    check_fault(check, name, rows_fault(memory_of<const int64_t>(host), host.numel(), values.size(0)));
    remember(check, *rows, *rows, values.size(0));
  }
}

void check_lists(const Check& check, const Tensor& starts, const Tensor& rows, const Tensor& like, int64_t entries) {
  check_list(check, "starts", starts, like);
  check_list(check, "rows", rows, like);
  REQUIRE_VALUE(starts.numel() >= 1, check.op,
                ": starts and rows must be contiguous int64 tensors, starts with one entry more than there are "
                "lists, got shape ",
                starts.sizes());
  if (!is_known(check, starts, rows, entries)) {
    const Tensor begin = on_host(check, starts), listed = on_host(check, rows);
    check_fault(check, "starts", starts_fault(memory_of<const int64_t>(begin), begin.numel() - 1, listed.numel()));
    check_fault(check, "rows", rows_fault(memory_of<const int64_t>(listed), listed.numel(), entries));
    remember(check, starts, rows, entries);
  }
}

WindowOf<int64_t> window_of(const Check& check, const Geometry& g) {
  const char* op = check.op;
  const size_t n = g.input_size.size();
  REQUIRE_VALUE(n <= 3 && g.output_size.size() == n && g.kernel_size.size() == n && g.stride.size() == n &&
                    g.padding.size() == n && g.dilation.size() == n,
                op, ": sizes, stride, padding and dilation must have one entry per spatial axis, at most 3");
  WindowOf<int64_t> window{{1, 1, 1}, {1, 1, 1}, {1, 1, 1}, {1, 1, 1}, {0, 0, 0}, {1, 1, 1}, g.transposed};
  constexpr int64_t most = INT32_MAX;
  int64_t inputs = 1, outputs = 1, all_taps = 1;
  for (size_t i = 0; i < n; ++i) {
    const size_t axis = 3 - n + i;
    const int64_t in = g.input_size[i], out = g.output_size[i], taps = g.kernel_size[i];
    const int64_t stride = g.stride[i], padding = g.padding[i], dilation = g.dilation[i];
    REQUIRE_VALUE(in >= 0 && out >= 0, op, ": sizes must not be negative, got ", in, " and ", out);
    REQUIRE_VALUE(stride >= 1 && dilation >= 1 && padding >= 0 && taps >= 1, op,
                  ": stride, dilation and kernel size must be at least 1, padding at least 0, got stride ", stride,
                  ", dilation ", dilation, ", kernel size ", taps, " and padding ", padding);
    bool fits = true;  // each before it is multiplied
    for (const int64_t number : {in, out, taps, stride, padding, dilation}) {
      fits = fits && number <= most;
    }
    const int64_t longest = std::max(in, out);
    fits = fits && taps * dilation + padding + stride <= most && longest + padding + stride <= most &&
           (longest + 1) * stride <= most && inputs * in <= most && outputs * out <= most && all_taps * taps <= most;
    REQUIRE_VALUE(fits, op, ": a sample's positions and what windows span must be below 2^31, got sizes ",
                  Ints(g.input_size), " and ", Ints(g.output_size), ", kernel size ", Ints(g.kernel_size), ", stride ",
                  Ints(g.stride), ", padding ", Ints(g.padding), ", dilation ", Ints(g.dilation));
    inputs *= in, outputs *= out, all_taps *= taps;
    window.in[axis] = in, window.out[axis] = out, window.taps[axis] = taps;
    window.stride[axis] = stride, window.padding[axis] = padding, window.dilation[axis] = dilation;
  }
  return window;
}

Masks::Masks(const Check& check, const std::vector<MaskTensors>& masks) {
  REQUIRE_VALUE(!masks.empty(), check.op, ": no mask given");
  const Tensor& like = masks.front().values;
  check.values("mask", like);
  for (const auto& [map, index] : masks) {
    check.like("mask", map, like);
    REQUIRE_VALUE(map.dim() >= 2, check.op, ": mask must have shape (B, C, *S), got ", map.sizes());
    if (index.has_value()) {
      check.beside("index", *index, like);
      REQUIRE_TYPE(index->scalar_type() == kLong, check.op, ": index must be int64, got ", index->scalar_type());
      REQUIRE_VALUE(index->dim() >= 2, check.op, ": index must have shape (B, C, *S), got ", index->sizes());
    }
    const Tensor& shape = index.has_value() ? *index : map;
    REQUIRE_VALUE(
        shape.size(0) == map.size(0) && shape.size(1) == map.size(1) && (size.empty() || shape.sizes() == Ints(size)),
        check.op, ": masks must have the same shape, got ", shape.sizes());
    size = shape.sizes().vec();
    maps.push_back(flattened(map.resolve_neg(), 2));
    indices.push_back(index.has_value() ? flattened(*index, 2) : Tensor());
  }
  spatial = product(Ints(size).slice(2));
  positions = times(size[0], spatial);
  REQUIRE_VALUE(size[1] <= INT32_MAX - 31 && positions <= int64_t{1} << 40, check.op, ": mask must have fewer than ",
                "2^31 channels at no more than 2^40 positions, got ", Ints(size));
}

int64_t channels_of_factors(const Check& check, const std::vector<SummandTensors>& summands) {
  int64_t least = kMostChannels;
  for (const SummandTensors& summand : summands) {
    if (summand.factor.has_value()) {
      check.tensor("factor", *summand.factor);
      REQUIRE_VALUE(summand.factor->dim() >= 2, check.op, ": factor must have shape (B, C, *S), got ",
                    summand.factor->sizes());
      least = std::min(least, summand.factor->size(1));
    }
  }
  return least;
}

Summands::Summands(const Check& check, const std::vector<SummandTensors>& given, const Tensor& like, int64_t batch,
                   int64_t targets, int64_t positions, int64_t limit) {
  for (const SummandTensors& s : given) {
    check.like("values", s.values, like);
    REQUIRE_VALUE(positions_of(check, s.offsets) == positions, check.op, ": patterns differ in their positions, ",
                  s.offsets.numel() - 1, " and ", positions);
    if (s.factor.has_value()) {
      check.like("factor", *s.factor, like);
      REQUIRE_VALUE(s.factor->dim() >= 2 && s.factor->size(0) == batch && s.factor->size(1) >= limit &&
                        times(batch, spatial_of(*s.factor, 2)) == positions,
                    check.op, ": factor must have shape (B, C, *S), got ", s.factor->sizes(), " for a batch of ", batch,
                    " with ", positions, " positions and ", limit, " channels");
    }
    sources.push_back({s.values, s.rows, s.offsets, s.channels});
    patterns.push_back(pattern_of(check, "the pattern of a source", {s.offsets, s.channels}, like, kMostChannels));
    check_rows(check, "the rows of a source", sources.back(), targets);
    factors.push_back(s.factor.has_value() ? flattened(s.factor->resolve_neg(), 2) : Tensor());
  }
}

DenseArguments::DenseArguments(const Check& check, const Tensor& relevance_, const PatternTensors& pattern_)
    : relevance(relevance_) {
  check.values("relevance", relevance);
  REQUIRE_VALUE(relevance.dim() >= 3, check.op, ": relevance must have shape (B, K, C, *S), got ", relevance.sizes());
  pattern = pattern_of(check, "pattern", pattern_, relevance, relevance.size(2));
  entries = pattern_.channels.numel();
  const int64_t positions = times(relevance.size(0), spatial_of(relevance, 3));
  REQUIRE_VALUE(pattern.positions == positions, check.op, ": the pattern has ", pattern.positions,
                " positions, relevance ", positions);
}

ToDenseArguments::ToDenseArguments(const Check& check, const RowTensors& source, int64_t batch, int64_t targets,
                                   const Sizes& size) {
  check.values("values", source.values);
  REQUIRE_VALUE(!size.empty(), check.op, ": size must be (C, *S), got ()");
  REQUIRE_VALUE(batch >= 0 && targets >= 0, check.op, ": batch and targets must not be negative, got ", batch, " and ",
                targets);
  for (const int64_t number : size) {
    REQUIRE_VALUE(number >= 0, check.op, ": size must not be negative, got ", Ints(size));
  }
  const int64_t spatial = product(Ints(size).slice(1)), positions = positions_of(check, source.offsets);
  REQUIRE_VALUE(positions == times(batch, spatial), check.op, ": the pattern has ", positions,
                " positions, the result ", times(batch, spatial));
  pattern = pattern_of(check, "source", {source.offsets, source.channels}, source.values, size[0]);
  check_rows(check, "source", source, targets);
  memory = with({batch, targets}, Ints(size).slice(1));
  memory.push_back(size[0]);
}

namespace {

// Of a sum, which says how many channels there are by its factors only.
Pattern summed_pattern(const Check& check, const std::vector<SummandTensors>& sources, const PatternTensors& tensors,
                       int64_t batch, int64_t targets) {
  REQUIRE_VALUE(!sources.empty(), check.op, ": nothing to add");
  const Tensor& like = sources.front().values;
  check.values("values", like);
  const Pattern pattern = pattern_of(check, "pattern", tensors, like, channels_of_factors(check, sources));
  check.not_negative("targets", targets);
  REQUIRE_VALUE(batch > 0 ? pattern.positions % batch == 0 : batch == 0 && pattern.positions == 0, check.op, ": ",
                pattern.positions, " positions are no whole number for each sample of a batch of ", batch);
  return pattern;
}

}  // namespace

SumArguments::SumArguments(const Check& check, const std::vector<SummandTensors>& sources,
                           const PatternTensors& pattern_, int64_t batch, int64_t targets)
    : pattern(summed_pattern(check, sources, pattern_, batch, targets)),
      summands(check, sources, sources.front().values, batch, targets, pattern.positions, 0) {}

WinnersArguments::WinnersArguments(const Check& check, const Tensor& index_, const PatternTensors& pooled_,
                                   const Geometry& geometry)
    : index(index_) {
  check.tensor("index", index);
  REQUIRE_TYPE(index.scalar_type() == kLong, check.op, ": index must be int64, got ", index.scalar_type());
  REQUIRE_VALUE(index.dim() >= 2, check.op, ": index must have shape (B, C, *S'), got ", index.sizes());
  pooled = pattern_of(check, "pooled", pooled_, index, index.size(1));
  REQUIRE_VALUE(pooled.positions == times(index.size(0), spatial_of(index, 2)), check.op, ": the pattern has ",
                pooled.positions, " positions, index has shape ", index.sizes());
  Geometry whole = geometry;
  whole.output_size = index.sizes().slice(2).vec();
  window = window_of(check, whole);
  REQUIRE_VALUE(times(index.size(0), window.inputs()) <= int64_t{1} << 40, check.op,
                ": a batch must have no more than 2^40 positions, got ", index.size(0), " samples of ",
                window.inputs());
}

WindowsArguments::WindowsArguments(const Check& check, const PatternTensors& wanted_, const PatternTensors& pooled_,
                                   int64_t batch, const Geometry& geometry) {
  check.tensor("offsets", wanted_.offsets);
  wanted = pattern_of(check, "wanted", wanted_, wanted_.offsets, kMostChannels);
  pooled = pattern_of(check, "pooled", pooled_, wanted_.offsets, kMostChannels);
  window = window_of(check, geometry);
  check.not_negative("batch", batch);
  REQUIRE_VALUE(wanted.positions == times(batch, window.inputs()) && pooled.positions == times(batch, window.outputs()),
                check.op, ": patterns have ", wanted.positions, " and ", pooled.positions, " positions, sizes ask for ",
                times(batch, window.inputs()), " and ", times(batch, window.outputs()));
}

GatherArguments::GatherArguments(const Check& check, const RowTensors& source, const Tensor& starts, const Tensor& rows,
                                 int64_t targets) {
  check.values("values", source.values);
  check_lists(check, starts, rows, source.values, source.channels.numel());
  pattern = pattern_of(check, "source", {source.offsets, source.channels}, source.values, kMostChannels);
  check_rows(check, "source", source, targets);
  lists = starts.numel() - 1;
}

void check_unpacked(const Check& check, const Tensor& weight) {
  check.values("weight", weight);
  REQUIRE_VALUE(weight.dim() == 4, check.op, ": weight must have shape (groups, Co, Ci, taps), got ", weight.sizes());
  REQUIRE_VALUE(weight.size(1) >= 1 && weight.size(2) >= 1, check.op, ": weight must have channels on both sides, got ",
                weight.sizes());
}

}  // namespace fastlrp::edge
