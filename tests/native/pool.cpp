// csrc/cpu/pool against loops over windows, with hostile sizes, strides and NaN wherever nothing may be read.
#include "../../csrc/cpu/pool.h"

#include <array>
#include <functional>
#include <stdexcept>

#include "check.h"

namespace {

using fastlrp::Windows;
using Axes = std::array<Windows, 3>;

struct Axis {
  int64_t inputs = 1, outputs = 1, kernel = 1, stride = 1, padding = 0, dilation = 1;
};

int64_t inputs_of(const Axes& axes) { return int64_t{axes[0].inputs} * axes[1].inputs * axes[2].inputs; }
int64_t outputs_of(const Axes& axes) { return int64_t{axes[0].outputs} * axes[1].outputs * axes[2].outputs; }

// Random, with as many windows as fit, or none, or some that lie outside.
Axis random_axis(bool dilated) {
  Axis axis;
  axis.inputs = native::integer(0, 19) == 0 ? 0 : native::integer(1, 9);
  axis.kernel = native::integer(1, 5);
  axis.stride = native::integer(1, 4);
  axis.dilation = dilated ? native::integer(1, 3) : 1;
  axis.padding = native::integer(0, axis.kernel);
  const int64_t room = axis.inputs + 2 * axis.padding - axis.dilation * (axis.kernel - 1) - 1;
  axis.outputs = native::integer(0, 9) == 0 ? native::integer(0, 5) : (room < 0 ? 0 : room / axis.stride + 1);
  return axis;
}

// Arguments of any pool; channel c of position i of sample b of a cache with n positions is at (b, c, i).
template <class T>
struct Problem {
  int64_t B, K, C, inputs, outputs;
  bool channels_last;
  int64_t stride_b, stride_k, stride_c;
  std::vector<T> memory;  // of the relevance, NaN between its planes
  std::vector<T> scale, out;

  Problem(int64_t B_, int64_t K_, int64_t C_, int64_t inputs_, int64_t outputs_, bool channels_last_, bool scaled)
      : B(B_), K(K_), C(C_), inputs(inputs_), outputs(outputs_), channels_last(channels_last_) {
    stride_c = channels_last ? 1 : outputs + native::integer(0, 2);
    stride_k = (channels_last ? C * outputs : C * stride_c) + native::integer(0, 3);
    stride_b = K * stride_k + native::integer(0, 3);
    const std::vector<T> values = native::mixed<T>(B * K * C * outputs);
    // Up to the last entry, not to the end of the last gap.
    memory = native::poisoned<T>(values.empty() ? 0 : relevance_at(B - 1, K - 1, C - 1, outputs - 1) + 1);
    for (int64_t n = 0; n < static_cast<int64_t>(values.size()); ++n) {
      const int64_t o = n % outputs, row = n / outputs;
      memory[relevance_at(row / C / K, row / C % K, row % C, o)] = values[n];
    }
    scale = native::mixed<T>(scaled ? B * C * outputs : 0);
    out = native::poisoned<T>(B * K * C * inputs);
  }

  int64_t relevance_at(int64_t b, int64_t k, int64_t c, int64_t o) const {
    return b * stride_b + k * stride_k + (channels_last ? o * C + c : c * stride_c + o);
  }
  int64_t cache_at(int64_t b, int64_t c, int64_t i, int64_t n) const {
    return channels_last ? (b * n + i) * C + c : (b * C + c) * n + i;
  }
  int64_t out_at(int64_t b, int64_t k, int64_t c, int64_t i) const { return cache_at(b * K + k, c, i, inputs); }
  fastlrp::PoolFlow<T> flow() {
    const T* scales = scale.empty() ? nullptr : scale.data();
    return {memory.data(), stride_b, stride_k, stride_c, scales, out.data(), B, K, C, outputs, inputs, channels_last};
  }

  // F * scale, in double
  double arriving(int64_t b, int64_t k, int64_t c, int64_t o) const {
    return static_cast<double>(memory[relevance_at(b, k, c, o)]) *
           (scale.empty() ? 1.0 : static_cast<double>(scale[cache_at(b, c, o, outputs)]));
  }

  std::string context() const {
    return "B " + std::to_string(B) + " K " + std::to_string(K) + " C " + std::to_string(C) + " inputs " +
           std::to_string(inputs) + " outputs " + std::to_string(outputs) + (channels_last ? " channels last" : "") +
           (scale.empty() ? "" : " scaled") + (sizeof(T) == 4 ? " float" : " double");
  }
};

template <class Test>
void for_each_kind(const Test& test) {
  for (const bool channels_last : {false, true}) {
    for (const bool scaled : {false, true}) {
      test(0.0f, channels_last, scaled);
      test(0.0, channels_last, scaled);
    }
  }
}

// One that asks for each of 0, 1, a lane less and more than a group of planes, several groups; and several threads.
constexpr int64_t kChannels[] = {0, 1, 2, 3, 15, 16, 17, 37};

// The windows that hold an input, as the windows' side of an axis says.
std::vector<std::vector<int64_t>> holders(const Windows& w) {
  std::vector<std::vector<int64_t>> result(w.inputs);
  for (int64_t o = 0; o < w.outputs; ++o) {
    for (int64_t j = 0; j < w.taps[o]; ++j) {
      result.at(w.begin[o] + j * w.dilation).push_back(o);
    }
  }
  return result;
}

// visit(i, o, what o gives to i) for every window o that holds input i.
template <class Visit>
void each_pair(const Axes& axes, const Visit& visit) {
  const auto z_holders = holders(axes[0]), y_holders = holders(axes[1]), x_holders = holders(axes[2]);
  for (int64_t i = 0; i < inputs_of(axes); ++i) {
    const int64_t x = i % axes[2].inputs, y = i / axes[2].inputs % axes[1].inputs,
                  z = i / axes[2].inputs / axes[1].inputs;
    for (const int64_t oz : z_holders[z]) {
      for (const int64_t oy : y_holders[y]) {
        for (const int64_t ox : x_holders[x]) {
          visit(i, (oz * axes[1].outputs + oy) * axes[2].outputs + ox,
                axes[0].weight[oz] * axes[1].weight[oy] * axes[2].weight[ox]);
        }
      }
    }
  }
}

template <class T>
void check_average(const Axes& axes, double factor, int64_t B, int64_t K, int64_t C, bool channels_last, bool scaled) {
  Problem<T> p(B, K, C, inputs_of(axes), outputs_of(axes), channels_last, scaled);
  std::vector<double> expected(p.out.size());
  each_pair(axes, [&](int64_t i, int64_t o, double weight) {
    for (int64_t row = 0; row < B * K * C; ++row) {
      const int64_t b = row / C / K, k = row / C % K, c = row % C;
      expected[p.out_at(b, k, c, i)] += p.arriving(b, k, c, o) * weight * factor;
    }
  });
  fastlrp::cpu::pool_avg_relevance<T>({p.flow(), axes.data(), factor});
  CHECK_FOR(native::close(p.out, expected), p.context());
}

template <class T>
void check_ties(const Axes& axes, int64_t B, int64_t K, int64_t C, bool channels_last, bool scaled) {
  Problem<T> p(B, K, C, inputs_of(axes), outputs_of(axes), channels_last, scaled);
  std::vector<T> input(B * C * p.inputs);
  for (T& value : input) {
    value = static_cast<T>(native::integer(-1, 1));
  }
  // The maxima, where a window holds anything; and the definition.
  std::vector<T> output(B * C * p.outputs, -std::numeric_limits<T>::infinity());
  std::vector<double> winners(output.size()), expected(p.out.size());
  for (int64_t plane = 0; plane < B * C; ++plane) {
    const int64_t b = plane / C, c = plane % C;
    each_pair(axes, [&](int64_t i, int64_t o, double) {
      T& most = output[p.cache_at(b, c, o, p.outputs)];
      most = std::max(most, input[p.cache_at(b, c, i, p.inputs)]);
    });
    const auto wins = [&](int64_t i, int64_t o) {
      return input[p.cache_at(b, c, i, p.inputs)] == output[p.cache_at(b, c, o, p.outputs)];
    };
    each_pair(axes, [&](int64_t i, int64_t o, double) { winners[p.cache_at(b, c, o, p.outputs)] += wins(i, o); });
    each_pair(axes, [&](int64_t i, int64_t o, double) {
      for (int64_t k = 0; k < K && wins(i, o); ++k) {
        expected[p.out_at(b, k, c, i)] += p.arriving(b, k, c, o) / winners[p.cache_at(b, c, o, p.outputs)];
      }
    });
  }
  fastlrp::cpu::pool_ties_relevance<T>({p.flow(), input.data(), output.data(), axes.data()});
  CHECK_FOR(native::close(p.out, expected), p.context());
  // One sample's relevance for one target alone is what it is beside others.
  const int64_t size = C * p.inputs;
  for (int64_t row = 0; row < B * K; ++row) {
    const int64_t b = row / K;
    std::vector<T> alone = native::poisoned<T>(size);
    fastlrp::PoolFlow<T> one = p.flow();
    one.B = one.K = 1, one.out = alone.data(), one.relevance += b * p.stride_b + row % K * p.stride_k;
    one.scale = scaled ? one.scale + b * C * p.outputs : nullptr;
    fastlrp::cpu::pool_ties_relevance<T>(
        {one, input.data() + b * size, output.data() + b * C * p.outputs, axes.data()});
    CHECK_FOR(std::equal(alone.begin(), alone.end(), p.out.begin() + row * size), p.context());
  }
}

template <class T>
void check_max(int64_t B, int64_t K, int64_t C, int64_t inputs, int64_t outputs, bool channels_last, bool scaled) {
  Problem<T> p(B, K, C, inputs, outputs, channels_last, scaled);
  std::vector<int64_t> index(B * C * outputs);
  for (int64_t& value : index) {
    value = native::integer(0, inputs - 1);
  }
  std::vector<double> expected(p.out.size());
  for (int64_t row = 0; row < B * K * C; ++row) {
    const int64_t b = row / C / K, k = row / C % K, c = row % C;
    for (int64_t o = 0; o < outputs; ++o) {
      expected[p.out_at(b, k, c, index[p.cache_at(b, c, o, outputs)])] += p.arriving(b, k, c, o);
    }
  }
  const auto run = [&] { fastlrp::cpu::pool_max_relevance<T>({p.flow(), index.data()}); };
  run();
  CHECK_FOR(native::close(p.out, expected), p.context());
  if (index.empty() || K == 0) {
    return;
  }
  for (const int64_t bad : {inputs, int64_t{-1}, std::numeric_limits<int64_t>::min()}) {
    index[native::integer(0, static_cast<int64_t>(index.size()) - 1)] = bad;
    bool thrown = false;
    try {
      run();
    } catch (const std::out_of_range&) {
      thrown = true;
    }
    CHECK_FOR(thrown, p.context());
  }
}

Axes random_axes(int dims, bool dilated, const std::function<Windows(const Axis&)>& make) {
  const Windows one = fastlrp::pool_windows(1, 1, 1, 1, 0, 1);
  Axes axes{one, one, one};
  for (int axis = 3 - dims; axis < 3; ++axis) {
    axes[axis] = make(random_axis(dilated));
  }
  return axes;
}

Windows tie_windows(const Axis& a) {
  return fastlrp::pool_windows(a.inputs, a.outputs, a.kernel, a.stride, a.padding, a.dilation);
}

}  // namespace

TEST(average_equals_loops) {
  for_each_kind([](auto zero, bool channels_last, bool scaled) {
    for (int round = 0; round < 36; ++round) {
      const bool padded = native::integer(0, 1);
      const Axes axes = random_axes(round % 3 + 1, false, [&](const Axis& a) {
        return fastlrp::average_windows(a.inputs, a.outputs, a.kernel, a.stride, a.padding, padded);
      });
      const int64_t C = kChannels[native::integer(0, 7)];
      check_average<decltype(zero)>(axes, native::integer(0, 1) ? 1.0 : -0.5, native::integer(0, 2),
                                    native::integer(0, 3), C, channels_last, scaled);
    }
  });
}

TEST(adaptive_average_equals_loops) {
  for_each_kind([](auto zero, bool channels_last, bool scaled) {
    for (int round = 0; round < 18; ++round) {
      const Axes axes = random_axes(round % 3 + 1, false, [](const Axis& a) {
        return fastlrp::adaptive_windows(a.inputs, native::integer(0, 7));
      });
      check_average<decltype(zero)>(axes, 1.0, native::integer(1, 2), native::integer(1, 3),
                                    kChannels[native::integer(0, 7)], channels_last, scaled);
    }
  });
}

TEST(ties_equal_loops) {
  for_each_kind([](auto zero, bool channels_last, bool scaled) {
    for (int round = 0; round < 36; ++round) {
      const Axes axes = random_axes(round % 3 + 1, true, tie_windows);
      check_ties<decltype(zero)>(axes, native::integer(0, 2), native::integer(0, 5), kChannels[native::integer(0, 7)],
                                 channels_last, scaled);
    }
  });
}

TEST(a_map_for_several_threads) {
  const auto axis = [](int64_t n) { return fastlrp::average_windows(n, n, 3, 1, 1, true); };
  const Axes average{fastlrp::pool_windows(1, 1, 1, 1, 0, 1), axis(23), axis(29)};
  const auto half = [](int64_t n) { return fastlrp::average_windows(n, n / 2, 2, 2, 0, true); };
  const Axes halves{average[0], half(31), half(58)};  // ranges of rows begin within a window
  const Axes line{average[0], average[0], fastlrp::pool_windows(4099, 2050, 3, 2, 1, 1)};
  for (const bool channels_last : {false, true}) {
    check_average<float>(average, 1.0, 2, 3, 37, channels_last, true);
    check_average<float>(halves, 1.0, 1, 1, 64, channels_last, true);
    check_ties<float>(average, 2, 3, 37, channels_last, true);
    check_average<float>(line, 1.0, 1, 18, 2, channels_last, false);
    check_ties<float>(line, 1, 18, 2, channels_last, false);
  }
}

TEST(winners_equal_loops) {
  for_each_kind([](auto zero, bool channels_last, bool scaled) {
    for (int round = 0; round < 12; ++round) {
      const int64_t inputs = native::integer(1, 40), outputs = native::integer(0, 23);
      check_max<decltype(zero)>(native::integer(0, 2), native::integer(0, 4), kChannels[native::integer(0, 7)], inputs,
                                outputs, channels_last, scaled);
    }
    check_max<decltype(zero)>(2, 9, 67, 121, 31, channels_last, scaled);
  });
}
