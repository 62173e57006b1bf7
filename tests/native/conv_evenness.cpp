// Which maps are even, and sums that are made again, against the definition in double.
#include "../../csrc/cpu/conv_evenness.h"

#include <algorithm>
#include <cmath>
#include <memory>

#include "check.h"

using fastlrp::cpu::Winograd;

namespace {

struct Shape {
  int64_t samples, height, width, inputs, outputs, top, left;
};

// The largest ratio of a place to a window of its tile.
double ratio(const Shape& s, const std::vector<double>& held) {
  const int64_t rows = s.height + 2 * s.top - 2, columns = s.width + 2 * s.left - 2;
  const auto at = [&](int64_t h, int64_t w) {
    h -= s.top, w -= s.left;
    return h < 0 || h >= s.height || w < 0 || w >= s.width ? 0.0 : held[h * s.width + w];
  };
  double found = 0;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t column = 0; column < columns; ++column) {
      double read = 0, largest = 0;
      for (int64_t i = 0; i < 9; ++i) {
        read += at(row + i / 3, column + i % 3);
      }
      for (int64_t i = 0; i < 36; ++i) {
        largest = std::max(largest, at(row / 4 * 4 + i / 6, column / 4 * 4 + i % 6));
      }
      found = std::max(found, read > 0 ? largest / read : 0);
    }
  }
  return found;
}

void look(const Shape& s, bool scaled) {
  const int64_t map = s.height * s.width * s.inputs;
  std::vector<float> x = native::mixed<float>(s.samples * map);
  for (int64_t i = 0; i < static_cast<int64_t>(x.size()); ++i) {
    x[i] *= i / s.inputs % s.width < s.width / 2 ? 1.0f : 0.01f;
  }
  const std::vector<float> scale = native::mixed<float>(scaled ? map : 0);
  Winograd p{s.samples, s.height, s.width, s.inputs, s.height + 2 * s.top - 2, s.width + 2 * s.left - 2,
             0,         s.top,    s.left,  x.data()};
  p.scale = scaled ? scale.data() : nullptr;
  p.targets = scaled ? s.samples : 1;
  for (int64_t sample = 0; sample < s.samples; ++sample) {
    std::vector<double> held(s.height * s.width, 0.0);
    for (int64_t i = 0; i < map; ++i) {
      held[i / s.inputs] += std::abs(static_cast<double>(x[sample * map + i]) * (scaled ? scale[i] : 1.0f));
    }
    const double most = ratio(s, held);
    const std::unique_ptr<bool[]> even(new bool[s.samples]());
    fastlrp::cpu::winograd_even(p, static_cast<float>(most * 1.001), even.get());
    CHECK(even[sample]);
    fastlrp::cpu::winograd_even(p, static_cast<float>(most * 0.999), even.get());
    CHECK(!even[sample]);
  }
}

// What rounding makes of a sum beside the relevance that it passes on, for each sample the largest ratio of its tiles.
void tell(const Shape& s) {
  Winograd p{s.samples, s.height, s.width, s.inputs, s.height + 2 * s.top - 2, s.width + 2 * s.left - 2,
             s.outputs, s.top,    s.left};
  const int64_t map = p.out_height * p.out_width * s.outputs, area = s.height * s.width, targets = s.samples;
  const std::vector<float> x = native::mixed<float>(s.samples * area * s.inputs);
  const std::vector<float> scale = native::mixed<float>(area * s.inputs), times = native::mixed<float>(map);
  std::vector<float> y = native::mixed<float>(s.samples * map), sizes = native::mixed<float>(s.outputs);
  std::transform(sizes.begin(), sizes.end(), sizes.begin(), [](float size) { return 0.5f + std::abs(size); });
  p.x = x.data(), p.scale = scale.data(), p.targets = targets, p.y = y.data();
  const int64_t across = (p.out_width + 3) / 4, tiles = (p.out_height + 3) / 4 * across;
  for (int64_t sample = 0; sample < s.samples; ++sample) {
    double most = 0;
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t row = tile / across * 4, column = tile % across * 4;
      double fullest = 0, largest = 0, total = 0;
      for (int64_t i = 0; i < 36; ++i) {
        const int64_t h = row + i / 6 - s.top, w = column + i % 6 - s.left;
        double held = 0;
        for (int64_t c = 0; h >= 0 && h < s.height && w >= 0 && w < s.width && c < s.inputs; ++c) {
          const int64_t at = (h * s.width + w) * s.inputs + c;
          held += std::abs(double{x[sample * area * s.inputs + at]} * scale[at]);
        }
        fullest = std::max(fullest, held);
      }
      for (int64_t i = 0; i < 16 * s.outputs; ++i) {
        const int64_t h = row + i / s.outputs / 4, w = column + i / s.outputs % 4, o = i % s.outputs;
        if (h < p.out_height && w < p.out_width) {
          const int64_t at = (h * p.out_width + w) * s.outputs + o;
          largest = std::max(largest, std::abs(double{times[at]}) * sizes[o]);
          total += std::abs(double{times[at]} * y[sample * map + at]);
        }
      }
      most = std::max(most, fullest * largest / total);
    }
    const std::unique_ptr<bool[]> told(new bool[s.samples]());
    fastlrp::cpu::winograd_tells(p, {times.data(), sizes.data()}, static_cast<float>(most * 1.001), told.get());
    CHECK(told[sample]);
    fastlrp::cpu::winograd_tells(p, {times.data(), sizes.data()}, static_cast<float>(most * 0.999), told.get());
    CHECK(!told[sample]);
  }
}

void repair(const Shape& s) {
  const int64_t rows = s.height + 2 * s.top - 2, columns = s.width + 2 * s.left - 2, count = rows * columns * s.outputs;
  const int64_t map = s.height * s.width * s.inputs;
  const std::vector<float> x = native::mixed<float>(s.samples * map), bias = native::mixed<float>(s.outputs);
  const std::vector<float> weight = native::mixed<float>(s.outputs * 9 * s.inputs);
  std::vector<float> y(s.samples * count, 1.0f), divided(s.samples * count, 8.0f);
  for (int64_t i = 0; i < static_cast<int64_t>(y.size()); i += i < count ? 2 * fastlrp::cpu::kRepaired : 2) {
    divided[i] = -9.0f;
  }
  const std::unique_ptr<bool[]> kept(new bool[s.samples]());
  const fastlrp::cpu::WinogradRepair p{s.samples,     s.height,    s.width,        s.inputs, rows,
                                       columns,       s.outputs,   s.top,          s.left,   x.data(),
                                       weight.data(), bias.data(), divided.data(), 8.0f,     y.data()};
  fastlrp::cpu::winograd_few_small(p, kept.get());
  for (int64_t sample = 1; sample < s.samples; ++sample) {
    CHECK(!kept[sample]);
  }
  fastlrp::cpu::winograd_repair(p, kept.get());
  for (int64_t sample = 0; sample < s.samples; ++sample) {
    CHECK(kept[sample] == (sample == 0));
  }
  for (int64_t at = 0; at < static_cast<int64_t>(y.size()); ++at) {
    double sum = bias[at % s.outputs];
    for (int64_t tap = 0; tap < 9; ++tap) {
      const int64_t h = at / s.outputs / columns % rows + tap / 3 - s.top,
                    w = at / s.outputs % columns + tap % 3 - s.left;
      for (int64_t i = 0; h >= 0 && h < s.height && w >= 0 && w < s.width && i < s.inputs; ++i) {
        sum += static_cast<double>(x[at / count * map + (h * s.width + w) * s.inputs + i]) *
               weight[(at % s.outputs * 9 + tap) * s.inputs + i];
      }
    }
    const bool again = at < count && divided[at] < 0;
    CHECK(again ? std::abs(y[at] - sum) <= 1e-4 * (1 + std::abs(sum)) : y[at] == 1.0f);
  }
}

const std::vector<Shape> kShapes = {{1, 4, 4, 16, 16, 1, 1}, {2, 9, 7, 16, 80, 1, 0}, {3, 5, 14, 48, 16, 2, 2},
                                    {2, 1, 2, 32, 48, 2, 1}, {4, 3, 3, 16, 32, 0, 0}, {2, 33, 31, 32, 32, 1, 1},
                                    {2, 1, 1, 16, 16, 2, 2}, {1, 1, 9, 16, 16, 1, 1}, {0, 5, 5, 16, 16, 1, 1}};

}  // namespace

TEST(conv_evenness) {
  for (const Shape& shape : kShapes) {
    look(shape, false);
    look(shape, true);
    tell(shape);
  }
}

TEST(conv_repair) {
  for (const Shape& shape : kShapes) {
    if ((shape.height + 2 * shape.top - 2) * (shape.width + 2 * shape.left - 2) * shape.outputs >
        4 * fastlrp::cpu::kRepaired) {
      repair(shape);
    }
  }
}
