// Patterns, moves and windows of csrc/cpu/sparse against loops over all neurons.
#include "sparse_cases.h"

// Scratch memory of the kernels is NaN until they write it.
extern "C" const char* __asan_default_options() { return "max_malloc_fill_size=1073741824:malloc_fill_byte=255"; }

namespace {

using namespace native::sparse;

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

}  // namespace

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
