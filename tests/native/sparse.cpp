// csrc/cpu/sparse against loops over all neurons, with hostile sizes, strides and NaN wherever nothing may be read.
#include "../../csrc/cpu/sparse.h"

#include <array>
#include <type_traits>

#include "../../csrc/common/bf16_unit.h"
#include "check.h"

// Scratch memory of the kernels is NaN until they write it.
extern "C" const char* __asan_default_options() { return "max_malloc_fill_size=1073741824:malloc_fill_byte=255"; }

namespace {

using namespace fastlrp::cpu;

// While set, random numbers are such that products of bfloat16 are exact: coefficients are whole and at most 2, what
// they are multiplied with is rounded.
bool few_digits = false;

template <class T>
std::vector<T> whole_numbers(int64_t size) {
  std::vector<T> values = native::mixed<T>(size);
  for (T& value : values) {
    value = few_digits ? std::clamp<T>(std::round(value), T(-2), T(2)) : value;
  }
  return values;
}

template <class T>
std::vector<T> narrow_numbers(int64_t size) {
  std::vector<T> values = native::mixed<T>(size);
  for (T& value : values) {
    value = few_digits ? static_cast<T>(static_cast<float>(fastlrp::Bf16(static_cast<float>(value)))) : value;
  }
  return values;
}

int64_t round_up(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

// A dense tensor (B, C, positions) in memory of exactly its span, NaN in the gaps; `dense` is the same without gaps.
template <class T>
struct Tensor {
  int64_t batch, channels, positions;
  std::vector<T> memory, dense;
  Map<T> map;

  Tensor(int64_t b, int64_t c, int64_t n, bool ones = false) : batch(b), channels(c), positions(n) {
    const bool last = native::integer(0, 1) == 1;
    const int64_t gap = native::integer(0, 2);
    map.channel = last ? 1 : n + gap;
    map.position = last ? c + gap : 1;
    map.batch = (last ? n * map.position : c * map.channel) + native::integer(0, 3);
    dense = ones ? std::vector<T>(b * c * n, T(1)) : whole_numbers<T>(b * c * n);
    memory = native::poisoned<T>(
        dense.empty() ? 0 : (b - 1) * map.batch + (c - 1) * map.channel + (n - 1) * map.position + 1);
    for (int64_t i = 0; i < static_cast<int64_t>(dense.size()); ++i) {
      memory[i / n / c * map.batch + i / n % c * map.channel + i % n * map.position] = dense[i];
    }
    map.data = memory.data();
  }
  double at(int64_t b, int64_t c, int64_t p) const { return dense[(b * channels + c) * positions + p]; }
};

// The entries of a tensor that are not zero, by loops.
template <class T>
Entries entries_of(const std::vector<const Tensor<T>*>& masks) {
  const Tensor<T>& first = *masks.front();
  Entries found;
  found.offsets.push_back(0);
  for (int64_t q = 0; q < first.batch * first.positions; ++q) {
    for (int64_t c = 0; c < first.channels; ++c) {
      bool alive = false;
      for (const Tensor<T>* mask : masks) {
        alive = alive || mask->at(q / first.positions, c, q % first.positions) != 0;
      }
      if (alive) {
        found.channels.push_back(static_cast<int32_t>(c));
      }
    }
    found.offsets.push_back(static_cast<int64_t>(found.channels.size()));
  }
  return found;
}

Pattern view(const Entries& entries) {
  return {entries.offsets.data(), entries.channels.data(), static_cast<int64_t>(entries.offsets.size()) - 1};
}

// A register with one row of targets per entry, in any order and in a table that is NaN apart from them.
template <class T>
struct Register {
  Entries entries;
  int64_t targets, stride, start;
  std::vector<T> table;
  std::vector<int64_t> place;
  std::vector<T> values;  // (entries, targets)

  Register(const Entries& of, int64_t k) : entries(of), targets(k) {
    const int64_t count = entries.offsets.back();
    start = native::integer(0, 5);
    stride = start + k + native::integer(0, 3);
    values = narrow_numbers<T>(count * k);
    if (native::integer(0, 1) == 1) {
      for (int64_t e = 0; e < count; ++e) {
        place.push_back(count - 1 - e);
      }
    }
    // Up to the last target of the last row, not to the end of the row.
    table = native::poisoned<T>(count == 0 ? 0 : (count - 1) * stride + start + k);
    for (int64_t i = 0; i < count * k; ++i) {
      table[(place.empty() ? i / k : place[i / k]) * stride + start + i % k] = values[i];
    }
  }
  Rows<T> rows() const {
    return {table.data() + (table.empty() ? 0 : start), stride, place.empty() ? nullptr : place.data(), view(entries)};
  }
  // Of a neuron, zero where it has no entry.
  double at(int64_t q, int64_t c, int64_t k) const {
    for (int64_t e = entries.offsets[q]; e < entries.offsets[q + 1]; ++e) {
      if (entries.channels[e] == c) {
        return values[e * targets + k];
      }
    }
    return 0;
  }
};

struct Axis {
  int64_t in = 1, out = 1, taps = 1, stride = 1, padding = 0, dilation = 1;
};

// Random, with any number of outputs: as many as fit, fewer, or more, which nothing then reaches.
Axis random_axis(bool transposed) {
  Axis axis;
  axis.in = native::integer(1, native::integer(0, 5) == 0 ? 40 : 7);
  axis.taps = native::integer(1, 4);
  axis.stride = native::integer(1, 3);
  axis.dilation = native::integer(1, 3);
  axis.padding = native::integer(0, 5);
  const int64_t reach = axis.dilation * (axis.taps - 1) + 1;
  axis.out = transposed ? (axis.in - 1) * axis.stride + reach - 2 * axis.padding
                        : (axis.in + 2 * axis.padding - reach) / axis.stride + 1;
  axis.out = std::clamp<int64_t>(axis.out + native::integer(-1, 1), 1, 90);
  return axis;
}

Window random_window(int dims, bool transposed) {
  Window w{{1, 1, 1}, {1, 1, 1}, {1, 1, 1}, {1, 1, 1}, {0, 0, 0}, {1, 1, 1}, transposed};
  for (int i = 3 - dims; i < 3; ++i) {
    const Axis a = random_axis(transposed);
    w.in[i] = a.in, w.out[i] = a.out, w.taps[i] = a.taps;
    w.stride[i] = a.stride, w.padding[i] = a.padding, w.dilation[i] = a.dilation;
  }
  if (dims == 3) {
    w.in[1] = std::min<int64_t>(w.in[1], 4), w.in[2] = std::min<int64_t>(w.in[2], 5);
  }
  return w;
}

int64_t size_of(const int64_t (&sizes)[3]) { return sizes[0] * sizes[1] * sizes[2]; }

// The output that a tap joins with input i along an axis, or -1.
int64_t joined(const Window& w, int axis, int64_t i, int64_t tap) {
  int64_t o = w.transposed ? i * w.stride[axis] - w.padding[axis] + tap * w.dilation[axis]
                           : i + w.padding[axis] - tap * w.dilation[axis];
  if (!w.transposed) {
    o = o >= 0 && o % w.stride[axis] == 0 ? o / w.stride[axis] : -1;
  }
  return o < w.out[axis] ? o : -1;
}

// f(output position, tap) for all taps that join an output with input position p.
template <class Body>
void over_joined(const Window& w, int64_t p, Body&& body) {
  const int64_t at[] = {p / w.in[2] / w.in[1], p / w.in[2] % w.in[1], p % w.in[2]};
  for (int64_t t = 0; t < size_of(w.taps); ++t) {
    const int64_t tap[] = {t / w.taps[2] / w.taps[1], t / w.taps[2] % w.taps[1], t % w.taps[2]};
    int64_t o = 0;
    for (int axis = 0; axis < 3 && o >= 0; ++axis) {
      const int64_t here = joined(w, axis, at[axis], tap[axis]);
      o = here < 0 ? -1 : o * w.out[axis] + here;
    }
    if (o >= 0) {
      body(o, t);
    }
  }
}

// (groups, Co, Ci, taps) as Blocks say.
template <class Number, class T>
std::vector<Number> packed(const std::vector<T>& weight, const Blocks& b, int64_t taps) {
  std::vector<Number> result(b.groups * b.in_blocks() * taps * b.out_blocks() * b.block_out * b.block_in, Number(0));
  for (int64_t i = 0; i < static_cast<int64_t>(weight.size()); ++i) {
    const int64_t t = i % taps, ci = i / taps % b.in_channels, co = i / taps / b.in_channels % b.out_channels;
    const int64_t g = i / taps / b.in_channels / b.out_channels;
    result[(g * b.in_blocks() + ci / b.block_in) * b.in_step + t * b.tap_step + co / b.block_out * b.out_step +
           co % b.block_out * b.row_step + ci % b.block_in * b.column_step] = Number(weight[i]);
  }
  return result;
}

// pairs: not one channel per group; tiles: with outputs innermost.
Blocks random_blocks(int64_t taps, bool pairs, bool tiles) {
  const int64_t kind = native::integer(pairs ? 1 : 0, 5);
  Blocks b{};
  b.groups = kind == 0 ? native::integer(2, 20) : kind == 1 ? native::integer(2, 3) : 1;
  b.out_channels = kind == 0 ? 1 : native::integer(1, kind == 2 ? 40 : 9);
  b.in_channels = kind == 0 ? 1 : native::integer(1, kind == 3 ? 40 : 9);
  // Smaller blocks than in use, so that there are several.
  b.block_out = std::min<int64_t>(b.out_channels, 16);
  b.block_in = std::min<int64_t>(b.in_channels, 16);
  b.row_step = tiles ? 1 : b.block_in;
  b.column_step = tiles ? b.block_out : 1;
  b.out_step = b.block_out * b.block_in;
  b.tap_step = b.out_blocks() * b.out_step;
  b.in_step = taps * b.tap_step;
  return b;
}

// TODO: true as soon as write_dense reads no factor of a fold that a position lacks: it is not set there.
constexpr bool kFoldsMeetSomewhere = true;

// One product or more through a random layer, compact or dense and folded, against a loop over all neurons.
template <class T, class Number = T>
void check_conv(int64_t targets, bool tiles = false) {
  constexpr bool pairs = !std::is_same_v<T, Number>;
  few_digits = pairs;
  const Window w = random_window(static_cast<int>(native::integer(0, 3)), native::integer(0, 2) == 0);
  const int64_t taps = size_of(w.taps), inputs = size_of(w.in), outputs = size_of(w.out);
  const Blocks b = random_blocks(taps, pairs, tiles);
  if (pairs && b.groups > 1 && b.out_channels * b.in_channels == 1) {
    return;
  }
  const int64_t batch = native::integer(0, 2), in = b.groups * b.in_channels, out = b.groups * b.out_channels;
  const int64_t products = native::integer(1, 2);
  std::vector<Tensor<T>> coefficients;
  std::vector<std::vector<T>> weights;
  std::vector<std::vector<Number>> blocks;
  std::vector<const Tensor<T>*> masks;
  for (int64_t i = 0; i < products; ++i) {
    coefficients.emplace_back(batch, out, outputs);
    weights.push_back(narrow_numbers<T>(b.groups * b.out_channels * b.in_channels * taps));
    blocks.push_back(packed<Number>(weights.back(), b, taps));
  }
  for (Tensor<T>& u : coefficients) {
    u.map.data = u.memory.data();
    masks.push_back(&u);
  }
  const Register<T> arriving(entries_of(masks), targets);
  const int64_t folds = in % 2 == 0 && b.groups == 1 ? 2 : 1;
  const bool everywhere = native::integer(0, 2) == 0;
  Tensor<T> alive(batch, in, inputs, everywhere);
  const Tensor<T> factor(batch, in, inputs);
  for (int64_t i = 0; folds == 2 && !everywhere && !kFoldsMeetSomewhere && i < batch * in * inputs; ++i) {
    const int64_t first = i - in / 2 * inputs;
    if (i / inputs % in >= in / 2 && alive.dense[first] != 0) {
      alive.dense[i] = 0;  // As where the sign of an input picks one.
    }
  }
  const Entries leaving = entries_of<T>({&alive});
  const int64_t entries = leaving.offsets.back(), stride = round_up(targets, kLanes);

  // weight_of(number in a weight, sample, output channel, output position): all products together.
  const auto loop = [&](auto&& weight_of) {
    std::vector<double> sums(entries * targets, 0.0);
    for (int64_t q = 0; q < batch * inputs; ++q) {
      for (int64_t e = leaving.offsets[q]; e < leaving.offsets[q + 1]; ++e) {
        const int64_t c = leaving.channels[e], sample = q / inputs;
        over_joined(w, q % inputs, [&](int64_t o, int64_t t) {
          for (int64_t row = c / b.in_channels * b.out_channels, i = 0; i < b.out_channels; ++row, ++i) {
            const double weight = weight_of((row * b.in_channels + c % b.in_channels) * taps + t, sample, row, o);
            for (int64_t k = 0; weight != 0 && k < targets; ++k) {
              sums[e * targets + k] += weight * arriving.at(sample * outputs + o, row, k);
            }
          }
        });
      }
    }
    return sums;
  };
  const std::vector<double> expected = loop([&](int64_t number, int64_t sample, int64_t row, int64_t o) {
    double weight = 0;
    for (int64_t i = 0; i < products; ++i) {
      weight += weights[i][number] * coefficients[i].at(sample, row, o);
    }
    return weight;
  });

  SparseConv<T, Number> p{};
  p.window = w, p.blocks = b, p.batch = batch, p.targets = targets, p.arriving = arriving.rows(),
  p.leaving = view(leaving);
  for (int64_t i = 0; i < products; ++i) {
    p.products.push_back({blocks[i].data(), coefficients[i].map});
  }
  const std::string context = "K " + std::to_string(targets) + " Co " + std::to_string(out) + " Ci " +
                              std::to_string(in) + " groups " + std::to_string(b.groups) + " inputs " +
                              std::to_string(inputs) + " outputs " + std::to_string(outputs) + " taps " +
                              std::to_string(taps);
  const auto targets_of = [&](const std::vector<T>& rows) {
    std::vector<T> found;
    for (int64_t i = 0; i < entries * targets; ++i) {
      found.push_back(rows[i / targets * stride + i % targets]);
    }
    return found;
  };
  std::vector<T> rows = native::poisoned<T>(entries * stride);
  p.result = rows.data(), p.result_stride = stride;
  sparse_conv_relevance(p);
  CHECK_FOR(native::close(targets_of(rows), expected), "rows, " + context);

  if (products == 2 && b.out_channels * b.in_channels > 1) {
    const std::vector<double> chosen = loop([&](int64_t number, int64_t sample, int64_t row, int64_t o) {
      const double u = coefficients[0].at(sample, row, o), v = coefficients[1].at(sample, row, o);
      return u * v < 0 ? weights[1][number] * (u + v) : weights[0][number] * u;
    });
    std::vector<Number> both = blocks[0];
    both.insert(both.end(), blocks[1].begin(), blocks[1].end());
    SparseConv<T, Number> one = p;
    one.products = {{both.data(), coefficients[0].map}};
    one.other = coefficients[1].map;
    one.other_weight = both.data() + blocks[0].size();
    rows = native::poisoned<T>(entries * stride);
    one.result = rows.data();
    sparse_conv_relevance(one);
    CHECK_FOR(native::close(targets_of(rows), chosen), "one of two weights, " + context);
  }

  const Tensor<T> other(batch, in, inputs);
  const Register<T> begin(entries_of<T>({&other}), targets);
  std::vector<double> total = expected;
  for (int64_t q = 0; q < batch * inputs; ++q) {
    for (int64_t e = leaving.offsets[q]; e < leaving.offsets[q + 1]; ++e) {
      for (int64_t k = 0; k < targets; ++k) {
        const int64_t c = leaving.channels[e];
        total[e * targets + k] += factor.at(q / inputs, c, q % inputs) * begin.at(q, c, k);
      }
    }
  }
  p.initial = {{begin.rows(), factor.map}};
  rows = native::poisoned<T>(entries * stride);
  p.result = rows.data();
  sparse_conv_relevance(p);
  CHECK_FOR(native::close(targets_of(rows), total), "rows that begin, " + context);

  p.initial.clear();
  p.dense = true;
  p.channels = in / folds;
  const int64_t space = native::integer(0, 2);  // Between channels.
  p.dense_position = 1, p.dense_channel = inputs + space, p.dense_target = p.channels * p.dense_channel;
  p.dense_batch = targets * p.dense_target;
  std::vector<Tensor<T>> factors;
  for (int64_t fold = 0; fold < folds; ++fold) {
    factors.emplace_back(batch, p.channels, inputs);
  }
  for (Tensor<T>& f : factors) {
    f.map.data = f.memory.data();
    p.factors.push_back(f.map);
  }
  const int64_t size = batch * targets * p.channels * inputs;
  std::vector<T> dense = native::poisoned<T>(size == 0 ? 0 : batch * p.dense_batch - space);
  std::vector<double> folded(size, 0.0);
  for (int64_t q = 0; q < batch * inputs; ++q) {
    for (int64_t e = leaving.offsets[q]; e < leaving.offsets[q + 1]; ++e) {
      const int64_t c = leaving.channels[e], sample = q / inputs, into = c % p.channels;
      for (int64_t k = 0; k < targets; ++k) {
        folded[((sample * targets + k) * p.channels + into) * inputs + q % inputs] +=
            factors[c / p.channels].at(sample, into, q % inputs) * expected[e * targets + k];
      }
    }
  }
  p.result = dense.data();
  sparse_conv_relevance(p);
  std::vector<T> found;
  for (int64_t i = 0; i < size; ++i) {
    found.push_back(dense[i / inputs * p.dense_channel + i % inputs]);
  }
  CHECK_FOR(native::close(found, folded), "dense, " + context);
}

template <class T>
void check_pattern() {
  const int64_t batch = native::integer(0, 3), channels = native::integer(0, 70), positions = native::integer(0, 9);
  const Tensor<T> first(batch, channels, positions), second(batch, channels, positions);
  const Entries expected = entries_of<T>({&first, &second});
  const Entries found =
      sparse_pattern<T>({{first.map, {}, positions}, {second.map, {}, positions}}, batch, channels, positions);
  CHECK(found.offsets == expected.offsets && found.channels == expected.channels);

  // The values at the positions that an index names.
  const int64_t below = native::integer(1, 12);
  const Tensor<T> values(batch, channels, below);
  std::vector<int64_t> index(batch * channels * positions);
  Tensor<T> picked(batch, channels, positions);
  for (int64_t i = 0; i < static_cast<int64_t>(index.size()); ++i) {
    index[i] = native::integer(0, below - 1);
    picked.dense[i] = static_cast<T>(values.at(i / positions / channels, i / positions % channels, index[i]));
  }
  const Map<int64_t> by{index.data(), channels * positions, positions, 1};
  const Entries at = sparse_pattern<T>({{values.map, by, below}}, batch, channels, positions),
                alive = entries_of<T>({&picked});
  CHECK(at.offsets == alive.offsets && at.channels == alive.channels);
}

template <class T>
void check_moves(int64_t targets) {
  const int64_t batch = native::integer(0, 2), channels = native::integer(1, 20), positions = native::integer(1, 90);
  const Tensor<T> mask(batch, channels, positions), other(batch, channels, positions),
      factor(batch, channels, positions);
  const Entries entries = entries_of<T>({&mask});
  const Register<T> first(entries, targets), second(entries_of<T>({&other}), targets);
  const int64_t stride = round_up(targets, kLanes), count = entries.offsets.back();

  // To a dense tensor whose targets are innermost, with a gap; and back.
  const int64_t wide = targets + native::integer(0, 2), size = batch * channels * positions * targets;
  std::vector<T> dense = native::poisoned<T>(size == 0 ? 0 : (batch * channels * positions - 1) * wide + targets);
  std::vector<double> expected(size), given;
  for (int64_t i = 0; i < size; ++i) {
    const int64_t q = i / targets / channels;
    expected[i] = first.at(q, i / targets % channels, i % targets);
  }
  const int64_t sample = positions * channels * wide, position = channels * wide;
  sparse_to_dense<T>(first.rows(), {dense.data(), batch, targets, channels, positions, sample, 1, wide, position});
  std::vector<T> found, rows = native::poisoned<T>(count * stride);
  for (int64_t i = 0; i < size; ++i) {
    found.push_back(dense[i / targets * wide + i % targets]);
  }
  CHECK(native::close(found, expected));
  sparse_from_dense<T>({dense.data(), batch, targets, channels, positions, sample, 1, wide, position}, view(entries),
                       rows.data(), stride);
  for (int64_t i = 0; i < count * stride; ++i) {
    CHECK(rows[i] == (i % stride < targets ? first.values[i / stride * targets + i % stride] : T(0)));
  }

  // The sum of two registers for the neurons of the first.
  std::vector<T> sums = native::poisoned<T>(count * stride);
  sparse_sum<T>({{second.rows(), factor.map}, {first.rows(), {}}}, view(entries), batch, targets, sums.data(), stride);
  std::vector<T> total;
  for (int64_t q = 0; q < batch * positions; ++q) {
    for (int64_t e = entries.offsets[q]; e < entries.offsets[q + 1]; ++e) {
      const int64_t c = entries.channels[e];
      for (int64_t k = 0; k < targets; ++k) {
        given.push_back(factor.at(q / positions, c, q % positions) * second.at(q, c, k) + first.at(q, c, k));
        total.push_back(sums[e * stride + k]);
      }
    }
  }
  CHECK(native::close(total, given));
}

// Winners of random windows: each entry's inputs in order, and what they get.
void check_winners(int64_t targets) {
  const Window w = random_window(static_cast<int>(native::integer(1, 3)), false);
  const int64_t batch = native::integer(0, 2), channels = native::integer(1, 9), inputs = size_of(w.in);
  const int64_t outputs = size_of(w.out);
  Tensor<float> mask(batch, channels, outputs);
  std::vector<int64_t> index(batch * channels * outputs, 0);
  std::vector<std::vector<int64_t>> reached(outputs);
  for (int64_t p = 0; p < inputs; ++p) {
    over_joined(w, p, [&](int64_t o, int64_t) { reached[o].push_back(p); });
  }
  for (int64_t i = 0; i < static_cast<int64_t>(index.size()); ++i) {
    const std::vector<int64_t>& choice = reached[i % outputs];
    if (choice.empty()) {
      mask.dense[i] = 0;  // A window beyond the map has no winner.
    } else {
      index[i] = choice[native::integer(0, static_cast<int64_t>(choice.size()) - 1)];
    }
  }
  const Entries pooled = entries_of<float>({&mask});
  const Gathered found = sparse_winners({index.data(), channels * outputs, outputs, 1}, view(pooled), w, batch);
  Entries expected;
  std::vector<int64_t> starts, rows;
  expected.offsets.push_back(0);
  for (int64_t q = 0; q < batch * inputs; ++q) {
    for (int64_t c = 0; c < channels; ++c) {
      const size_t before = rows.size();
      for (int64_t o = 0; o < outputs; ++o) {
        const int64_t at = q / inputs * outputs + o;
        for (int64_t e = pooled.offsets[at]; e < pooled.offsets[at + 1]; ++e) {
          if (pooled.channels[e] == c && index[(q / inputs * channels + c) * outputs + o] == q % inputs) {
            rows.push_back(e);
          }
        }
      }
      if (rows.size() > before) {
        starts.push_back(static_cast<int64_t>(before));
        expected.channels.push_back(static_cast<int32_t>(c));
      }
    }
    expected.offsets.push_back(static_cast<int64_t>(expected.channels.size()));
  }
  starts.push_back(static_cast<int64_t>(rows.size()));
  CHECK(found.entries.offsets == expected.offsets && found.entries.channels == expected.channels);
  CHECK(found.starts == starts && found.rows == rows);

  const Register<float> arriving(pooled, targets);
  const int64_t stride = round_up(targets, kLanes), entries = expected.offsets.back();
  std::vector<float> values = native::poisoned<float>(entries * stride), sums;
  std::vector<double> shares;
  sparse_gather_sum<float>(arriving.rows(), found.starts.data(), found.rows.data(), entries, targets, values.data(),
                           stride);
  for (int64_t i = 0; i < entries * targets; ++i) {
    double share = 0;
    for (int64_t r = starts[i / targets]; r < starts[i / targets + 1]; ++r) {
      share += arriving.values[rows[r] * targets + i % targets];
    }
    shares.push_back(share);
    sums.push_back(values[i / targets * stride + i % targets]);
  }
  CHECK(native::close(sums, shares));
}

// Rows of random windows for the wanted ones of their inputs, most of them (or few) in a pool's output.
void check_windows() {
  Window w = random_window(static_cast<int>(native::integer(1, 3)), false);
  if (native::integer(0, 1) == 1) {  // Tiles, with or without gaps.
    for (int axis = 0; axis < 3; ++axis) {
      w.stride[axis] = w.taps[axis] + native::integer(0, 1);
    }
  }
  std::fill(w.dilation, w.dilation + 3, 1);
  const int64_t batch = native::integer(0, 2), channels = native::integer(1, 9);
  const int64_t inputs = size_of(w.in), outputs = size_of(w.out);
  const Tensor<float> above(batch, channels, outputs, native::integer(0, 1) == 1);
  const Tensor<float> below(batch, channels, inputs, native::integer(0, 2) == 1);
  const Entries pooled = entries_of<float>({&above}), wanted = entries_of<float>({&below});
  const Gathered found = sparse_windows(view(wanted), view(pooled), w, batch);
  Entries expected;
  std::vector<int64_t> starts, rows;
  expected.offsets.push_back(0);
  for (int64_t q = 0; q < batch * inputs; ++q) {
    for (int64_t i = wanted.offsets[q]; i < wanted.offsets[q + 1]; ++i) {
      const size_t before = rows.size();
      over_joined(w, q % inputs, [&](int64_t o, int64_t) {
        const int64_t at = q / inputs * outputs + o;
        for (int64_t e = pooled.offsets[at]; e < pooled.offsets[at + 1]; ++e) {
          if (pooled.channels[e] == wanted.channels[i]) {
            rows.push_back(e);
          }
        }
      });
      std::sort(rows.begin() + static_cast<int64_t>(before), rows.end());
      if (rows.size() > before) {
        starts.push_back(static_cast<int64_t>(before));
        expected.channels.push_back(wanted.channels[i]);
      }
    }
    expected.offsets.push_back(static_cast<int64_t>(expected.channels.size()));
  }
  starts.push_back(static_cast<int64_t>(rows.size()));
  const Entries& entries = found.everything ? wanted : found.entries;
  CHECK(entries.offsets == expected.offsets && entries.channels == expected.channels && found.rows == rows);
  CHECK(found.starts == starts || (found.starts.empty() && rows.size() == expected.channels.size()));
}

constexpr int64_t kTargets[] = {1, 7, 8, 15, 16, 17, 32, 33, 64, 70};

}  // namespace

TEST(sparse_products_equal_loops) {
  for (const int64_t targets : kTargets) {
    for (int repeat = 0; repeat < 12; ++repeat) {
      check_conv<float>(targets);
      check_conv<double>(targets);
    }
  }
}

TEST(sparse_products_of_bfloat16_equal_loops) {
  for (const std::string& unit : fastlrp::available_bf16_units()) {
    fastlrp::set_bf16_unit(unit);
    for (const int64_t targets : {1, 17, 33, 70}) {
      for (int repeat = 0; repeat < 6; ++repeat) {
        check_conv<float, fastlrp::Bf16>(targets, fastlrp::has_tiles(fastlrp::bf16_unit()));
      }
    }
  }
  fastlrp::set_bf16_unit("auto");
  few_digits = false;
}

TEST(sparse_patterns_equal_loops) {
  for (int repeat = 0; repeat < 100; ++repeat) {
    check_pattern<float>();
    check_pattern<double>();
  }
}

TEST(sparse_rows_move_as_loops_move_them) {
  for (const int64_t targets : kTargets) {
    for (int repeat = 0; repeat < 5; ++repeat) {
      check_moves<float>(targets);
      check_moves<double>(targets);
    }
  }
}

TEST(sparse_winners_equal_loops) {
  for (const int64_t targets : kTargets) {
    for (int repeat = 0; repeat < 10; ++repeat) {
      check_winners(targets);
    }
  }
}

TEST(sparse_windows_equal_loops) {
  for (int repeat = 0; repeat < 200; ++repeat) {
    check_windows();
  }
}
