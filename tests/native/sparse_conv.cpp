// The product of csrc/cpu/sparse against a loop over all neurons.
#include <array>
#include <type_traits>

#include "../../csrc/common/bf16_unit.h"
#include "sparse_cases.h"

namespace {

using namespace native::sparse;

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
