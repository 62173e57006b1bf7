// 3x3 convolutions by Winograd's filtering, against the definition in double.
#include "../../csrc/cpu/conv_winograd.h"

#include <algorithm>

#include "check.h"

using fastlrp::cpu::Winograd;

namespace {

struct Shape {
  int64_t samples, height, width, inputs, outputs, top, left;
};

void compare(const Shape& s, bool turned, bool with_all) {
  const int64_t out_height = s.height + 2 * s.top - 2, out_width = s.width + 2 * s.left - 2;
  const int64_t targets = with_all ? s.samples : 1, area = s.height * s.width * s.inputs;
  const std::vector<float> x = native::mixed<float>(s.samples * area);
  const std::vector<float> scale = native::mixed<float>(with_all ? area : 0);
  const std::vector<float> bias = native::mixed<float>(with_all ? s.outputs : 0);
  const std::vector<float> weight = native::mixed<float>(s.outputs * s.inputs * 9);
  std::vector<float> y = native::poisoned<float>(s.samples * out_height * out_width * s.outputs);
  const std::vector<float> least = native::mixed<float>(with_all ? static_cast<int64_t>(y.size()) : 0);
  std::vector<float> packed = native::poisoned<float>(36 * s.outputs * s.inputs);
  fastlrp::cpu::winograd_pack(s.outputs, s.inputs, weight.data(), turned, packed.data());
  const auto given = [](const std::vector<float>& v) { return v.empty() ? nullptr : v.data(); };
  fastlrp::cpu::winograd_convolution({s.samples, s.height, s.width, s.inputs, out_height, out_width, s.outputs, s.top,
                                      s.left, x.data(), given(scale), targets, packed.data(), given(bias), given(least),
                                      with_all, y.data(), false});
  // A sample alone is what it is in the batch.
  const int64_t map = out_height * out_width * s.outputs;
  for (int64_t sample = 0; sample < s.samples; ++sample) {
    std::vector<float> alone = native::poisoned<float>(map);
    fastlrp::cpu::winograd_convolution({1, s.height, s.width, s.inputs, out_height, out_width, s.outputs, s.top, s.left,
                                        x.data() + sample * area, given(scale), 1, packed.data(), given(bias),
                                        with_all ? least.data() + sample * map : nullptr, with_all, alone.data(),
                                        false});
    CHECK(std::equal(alone.begin(), alone.end(), y.begin() + sample * map));
  }
  double largest = 0, worst = 0;
  for (int64_t at = 0; at < static_cast<int64_t>(y.size()); ++at) {
    const int64_t o = at % s.outputs, column = at / s.outputs % out_width,
                  row = at / s.outputs / out_width % out_height;
    const int64_t sample = at / s.outputs / out_width / out_height;
    double sum = with_all ? bias[o] : 0;
    for (int64_t tap = 0; tap < 9; ++tap) {
      const int64_t h = row + tap / 3 - s.top, w = column + tap % 3 - s.left;
      if (h < 0 || h >= s.height || w < 0 || w >= s.width) {
        continue;
      }
      for (int64_t i = 0; i < s.inputs; ++i) {
        const int64_t place = (h * s.width + w) * s.inputs + i;
        const double factor = with_all ? scale[place] : 1;
        const float g = turned ? weight[(i * s.outputs + o) * 9 + 8 - tap] : weight[(o * s.inputs + i) * 9 + tap];
        sum += factor * x[sample * area + place] * g;
      }
    }
    largest = std::max(largest, std::abs(sum));
    sum = with_all ? std::max({sum, 0.0, static_cast<double>(least[at])}) : sum;
    worst = std::max(worst, std::abs(sum - y[at]));
    CHECK(y[at] == y[at]);
  }
  CHECK_FOR(worst <= 2e-5 * largest, "height " + std::to_string(s.height) + ", worst " + std::to_string(worst));
}

// Two scales of one x are as many inputs again, which lie behind the first.
void compare_both(const Shape& s) {
  const int64_t out_height = s.height + 2 * s.top - 2, out_width = s.width + 2 * s.left - 2;
  const int64_t area = s.height * s.width * s.inputs, places = s.samples * s.height * s.width;
  const std::vector<float> x = native::mixed<float>(s.samples * area);
  const std::vector<float> first = native::mixed<float>(area), second = native::mixed<float>(area);
  const std::vector<float> weight = native::mixed<float>(s.outputs * 2 * s.inputs * 9);
  std::vector<float> packed(36 * s.outputs * 2 * s.inputs), apart(2 * s.samples * area);
  fastlrp::cpu::winograd_pack(s.outputs, 2 * s.inputs, weight.data(), true, packed.data());
  for (int64_t at = 0; at < places * s.inputs; ++at) {
    float* to = apart.data() + at / s.inputs * 2 * s.inputs + at % s.inputs;
    to[0] = x[at] * first[at % area];
    to[s.inputs] = x[at] * second[at % area];
  }
  const auto run = [&](const float* given, const float* scale, const float* other) {
    std::vector<float> y = native::poisoned<float>(s.samples * out_height * out_width * s.outputs);
    fastlrp::cpu::winograd_convolution({s.samples, s.height, s.width, 2 * s.inputs, out_height, out_width, s.outputs,
                                        s.top, s.left, given, scale, s.samples, packed.data(), nullptr, nullptr, false,
                                        y.data(), false, other});
    return y;
  };
  CHECK(run(x.data(), first.data(), second.data()) == run(apart.data(), nullptr, nullptr));
}

}  // namespace

TEST(conv_winograd_both) {
  compare_both({1, 4, 4, 16, 16, 1, 1});
  compare_both({2, 9, 7, 48, 80, 1, 0});
  compare_both({3, 3, 5, 32, 16, 2, 2});
}

TEST(conv_winograd) {
  for (const bool turned : {false, true}) {
    for (const bool with_all : {false, true}) {
      compare({1, 4, 4, 16, 16, 1, 1}, turned, with_all);
      compare({2, 9, 7, 16, 80, 1, 0}, turned, with_all);
      compare({3, 5, 14, 48, 16, 2, 2}, turned, with_all);
      compare({2, 1, 2, 32, 48, 2, 1}, turned, with_all);
      compare({4, 3, 3, 16, 32, 0, 0}, turned, with_all);
      compare({2, 1, 1, 16, 16, 1, 1}, turned, with_all);
      compare({1, 0, 5, 16, 16, 2, 1}, turned, with_all);
      compare({0, 4, 4, 16, 16, 1, 1}, turned, with_all);
    }
  }
}

// Half of the map is flat: its places are alike, and copies of the first of them.
TEST(conv_winograd_alike) {
  constexpr int64_t height = 21, width = 18, inputs = 16, outputs = 32;
  std::vector<float> x = native::mixed<float>(height * width * inputs);
  for (int64_t at = 0; at < height * width; ++at) {
    if (at % width >= width / 2) {
      std::copy_n(x.data() + inputs, inputs, x.data() + at * inputs);
    }
  }
  const std::vector<float> weight = native::mixed<float>(outputs * inputs * 9);
  std::vector<float> packed = native::poisoned<float>(36 * outputs * inputs);
  fastlrp::cpu::winograd_pack(outputs, inputs, weight.data(), false, packed.data());
  std::vector<float> y[2];
  for (const bool alike : {false, true}) {
    y[alike] = native::poisoned<float>(height * width * outputs);
    fastlrp::cpu::winograd_convolution({1, height, width, inputs, height, width, outputs, 1, 1, x.data(), nullptr, 1,
                                        packed.data(), nullptr, nullptr, false, y[alike].data(), alike});
  }
  const int64_t first = (width + width / 2 + 1) * outputs;  // All of that kind are the same, whichever they come from.
  for (int64_t at = 0; at < height * width; ++at) {
    const int64_t row = at / width, column = at % width;
    const bool inside = row > 0 && row < height - 1 && column > width / 2 && column < width - 1;
    for (int64_t o = 0; o < outputs; ++o) {
      CHECK(std::abs(y[1][at * outputs + o] - y[0][at * outputs + o]) <= 1e-3);
      CHECK(!inside || y[1][at * outputs + o] == y[1][first + o]);
    }
  }
}

// Windows of dust, and of dust of dust, beside bright places are as exact as their own numbers.
TEST(conv_winograd_levels) {
  constexpr int64_t size = 19, inputs = 16, outputs = 16;
  std::vector<float> x = native::mixed<float>(size * size * inputs);
  for (int64_t at = 0; at < size * size; ++at) {
    for (int64_t i = 0; i < inputs && at % size >= 6; ++i) {
      x[at * inputs + i] *= at % size >= 10 ? 1e-30f : 1e-15f;
    }
  }
  const std::vector<float> weight = native::mixed<float>(outputs * inputs * 9);
  std::vector<float> packed = native::poisoned<float>(36 * outputs * inputs);
  std::vector<float> y = native::poisoned<float>(size * size * outputs);
  fastlrp::cpu::winograd_pack(outputs, inputs, weight.data(), false, packed.data());
  fastlrp::cpu::winograd_convolution({1, size, size, inputs, size, size, outputs, 1, 1, x.data(), nullptr, 1,
                                      packed.data(), nullptr, nullptr, false, y.data(), true});
  for (int64_t at = 0; at < static_cast<int64_t>(y.size()); ++at) {
    const int64_t o = at % outputs, column = at / outputs % size, row = at / outputs / size;
    double sum = 0, read = 0;
    for (int64_t tap = 0; tap < 9; ++tap) {
      const int64_t h = row + tap / 3 - 1, w = column + tap % 3 - 1;
      for (int64_t i = 0; i < inputs && h >= 0 && h < size && w >= 0 && w < size; ++i) {
        const double term = double{x[(h * size + w) * inputs + i]} * weight[(o * inputs + i) * 9 + tap];
        sum += term;
        read += std::abs(term);
      }
    }
    CHECK_FOR(std::abs(sum - y[at]) <= 1e-4 * read, "column " + std::to_string(column));
  }
}

// Several blocks of tiles, the last one smaller, on several threads.
TEST(conv_winograd_in_blocks) { compare({2, 33, 31, 64, 64, 1, 1}, false, true); }
