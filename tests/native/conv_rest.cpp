// Sums as what is left of others, and what is divided by both, against the definition in double.
#include "../../csrc/cpu/conv_rest.h"

#include <algorithm>
#include <memory>

#include "check.h"

using fastlrp::cpu::ConvRest;

namespace {

struct Shape {
  int64_t samples, inputs, outputs;
  int64_t size[2], kernel[2], stride[2], padding[2], dilation[2];
};

constexpr float kMost = 8.0f, kAlpha = 3.0f, kBeta = -2.0f, kEpsilon = 1e-3f;
constexpr float kNone = std::numeric_limits<float>::quiet_NaN();

// A convolution with all that it reads.
struct Problem {
  ConvRest p;
  std::vector<float> x, weight, bias, whole, part, factor, above, below;
  std::vector<double> sums;  // y by its definition

  Problem(const Shape& s, bool has_bias, bool has_factor) : p{s.samples, s.inputs, s.outputs} {
    for (int axis = 0; axis < 2; ++axis) {
      p.size[axis] = s.size[axis];
      p.kernel[axis] = s.kernel[axis];
      p.stride[axis] = s.stride[axis];
      p.padding[axis] = s.padding[axis];
      p.dilation[axis] = s.dilation[axis];
      const int64_t reach = s.size[axis] + 2 * s.padding[axis] - s.dilation[axis] * (s.kernel[axis] - 1) - 1;
      p.out_size[axis] = reach < 0 ? 0 : reach / s.stride[axis] + 1;
    }
    const auto sized = [](int64_t count) {
      std::vector<float> values = native::mixed<float>(count);
      std::for_each(values.begin(), values.end(), [](float& value) { value = std::abs(value); });
      return values;
    };
    x = sized(s.samples * s.size[0] * s.size[1] * s.inputs);
    weight = sized(s.outputs * s.kernel[0] * s.kernel[1] * s.inputs);
    bias = sized(has_bias ? s.outputs : 0);
    const int64_t count = s.samples * map();
    for (int64_t at = 0; at < count; ++at) {
      sums.push_back(sum(at));
    }
    // Most sums are large beside their outputs; every 37th of a sample's is not.
    whole = native::mixed<float>(count);
    part.resize(count);
    for (int64_t at = 0; at < count; ++at) {
      whole[at] = at % map() % 37 == 5 ? static_cast<float>(99 * sums[at]) + 1.0f : whole[at];
      part[at] = static_cast<float>(sums[at] + whole[at]);
    }
    factor = native::mixed<float>(has_factor ? count : 0);
    above = below = native::poisoned<float>(count);
    const auto given = [](const std::vector<float>& values) { return values.empty() ? nullptr : values.data(); };
    p.x = x.data(), p.weight = weight.data(), p.bias = given(bias), p.whole = whole.data(), p.part = part.data();
    p.factor = given(factor), p.most = kMost, p.alpha = kAlpha, p.beta = kBeta, p.epsilon = kEpsilon;
    p.above = above.data(), p.below = below.data();
  }

  int64_t map() const { return p.out_size[0] * p.out_size[1] * p.outputs; }

  double sum(int64_t at) const {
    const int64_t o = at % p.outputs, column = at / p.outputs % p.out_size[1];
    const int64_t row = at / p.outputs / p.out_size[1] % p.out_size[0], sample = at / map();
    double total = bias.empty() ? 0.0 : bias[o];
    for (int64_t tap = 0; tap < p.kernel[0] * p.kernel[1]; ++tap) {
      const int64_t h = row * p.stride[0] - p.padding[0] + tap / p.kernel[1] * p.dilation[0];
      const int64_t w = column * p.stride[1] - p.padding[1] + tap % p.kernel[1] * p.dilation[1];
      for (int64_t c = 0; h >= 0 && h < p.size[0] && w >= 0 && w < p.size[1] && c < p.inputs; ++c) {
        total += static_cast<double>(x[((sample * p.size[0] + h) * p.size[1] + w) * p.inputs + c]) *
                 weight[(o * p.kernel[0] * p.kernel[1] + tap) * p.inputs + c];
      }
    }
    return total;
  }

  float factor_at(int64_t at) const { return factor.empty() ? 1.0f : factor[at]; }

  // Whether the difference has too few digits.
  bool is_small(int64_t at) const {
    const float y = part[at] - whole[at];
    const bool beside_factor = !factor.empty() && !(std::abs(factor[at]) <= kMost * y);
    return factor_at(at) != 0.0f && (beside_factor || !(whole[at] <= kMost * y));
  }

  std::vector<bool> run() {
    const std::unique_ptr<bool[]> kept(new bool[p.samples]);
    fastlrp::cpu::conv_rest(p, kept.get());
    return std::vector<bool>(kept.get(), kept.get() + p.samples);
  }
};

double share(double part, double factor, double times) {
  const double sum = part + (part < 0 ? -kEpsilon : kEpsilon);
  return factor == 0 || sum == 0 ? 0.0 : times * factor / sum;
}

bool near(float got, double expected) { return std::abs(got - expected) <= 4e-6 * std::abs(expected); }

void check(Problem& problem, const std::string& context) {
  const std::vector<bool> kept = problem.run();
  const ConvRest& p = problem.p;
  const int64_t map = problem.map();
  for (int64_t sample = 0; sample < p.samples; ++sample) {
    int64_t small = 0;
    for (int64_t at = sample * map; at < (sample + 1) * map; ++at) {
      small += problem.is_small(at);
    }
    CHECK_FOR(kept[sample] == (small <= map / fastlrp::cpu::kRestAgain), context);
    for (int64_t at = sample * map; at < (sample + 1) * map; ++at) {
      const float factor = problem.factor_at(at);
      CHECK_FOR(near(problem.above[at], share(problem.part[at], factor, kAlpha)), context);
      const double y = problem.is_small(at) ? problem.sums[at] : double{problem.part[at] - problem.whole[at]};
      CHECK_FOR(!kept[sample] || near(problem.below[at], share(y, factor, kBeta)), context);
    }
  }
}

void compare(const Shape& s, bool has_bias, bool has_factor) {
  const std::string context = "height " + std::to_string(s.size[0]) + ", width " + std::to_string(s.size[1]) +
                              ", inputs " + std::to_string(s.inputs) + (has_bias ? ", with a bias" : "") +
                              (has_factor ? ", with a factor" : "");
  Problem problem(s, has_bias, has_factor);
  check(problem, context);
  const std::vector<float> above = problem.above, below = problem.below;
  CHECK_FOR(native::on_any_threads("above " + context, above), context);
  CHECK_FOR(native::on_any_threads("below " + context, below), context);
  // A sample alone is what it is in the batch.
  const ConvRest batch = problem.p;
  const int64_t map = problem.map();
  for (int64_t sample = 0; sample < s.samples; ++sample) {
    ConvRest one = batch;
    std::vector<float> over_part = native::poisoned<float>(map), over_rest = over_part;
    one.samples = 1, one.x += sample * s.size[0] * s.size[1] * s.inputs;
    one.whole += sample * map, one.part += sample * map, one.factor += has_factor ? sample * map : 0;
    one.above = over_part.data(), one.below = over_rest.data();
    bool kept;
    fastlrp::cpu::conv_rest(one, &kept);
    CHECK_FOR(std::equal(over_part.begin(), over_part.end(), above.begin() + sample * map), context);
    CHECK_FOR(!kept || std::equal(over_rest.begin(), over_rest.end(), below.begin() + sample * map), context);
  }
}

// One row, one column and one output; kernels larger than the map; padding larger than the map, whose outermost sums
// read nothing; gaps in kernels and between them; fewer inputs than lanes, as many, and some more; rows of outputs
// below, at and above a block of 1024; no samples and no outputs.
const std::vector<Shape> kShapes = {
    {3, 20, 37, {9, 12}, {3, 3}, {1, 1}, {1, 1}, {1, 1}}, {2, 19, 70, {5, 7}, {1, 1}, {2, 1}, {0, 0}, {1, 1}},
    {1, 33, 40, {9, 12}, {3, 2}, {2, 1}, {2, 0}, {2, 3}}, {2, 16, 64, {1, 16}, {1, 1}, {1, 1}, {0, 0}, {1, 1}},
    {2, 3, 129, {1, 8}, {1, 3}, {1, 1}, {0, 1}, {1, 1}},  {2, 1, 1, {8, 1}, {5, 1}, {1, 1}, {2, 0}, {1, 1}},
    {2, 17, 37, {2, 1}, {3, 3}, {1, 1}, {4, 5}, {1, 1}},  {1, 5, 1, {1, 1}, {1, 1}, {1, 1}, {0, 0}, {1, 1}},
    {2, 5, 4, {2, 2}, {3, 3}, {1, 1}, {0, 0}, {1, 1}},    {0, 16, 4, {4, 4}, {3, 3}, {1, 1}, {1, 1}, {1, 1}}};

}  // namespace

TEST(conv_rest) {
  for (const Shape& shape : kShapes) {
    for (const bool has_factor : {false, true}) {
      compare(shape, true, has_factor);
      compare(shape, false, has_factor);
    }
  }
}

// Where more than one in kRestAgain are small nothing is made again, in that sample alone.
TEST(conv_rest_counts_by_sample) {
  Problem problem({3, 4, 32, {4, 8}, {1, 1}, {1, 1}, {0, 0}, {1, 1}}, false, false);
  const int64_t map = problem.map(), most = map / fastlrp::cpu::kRestAgain;
  for (int64_t at = 0; at < 3 * map; ++at) {
    const bool is_small = at % map < most + (at / map == 1 ? 1 : 0);
    problem.whole[at] = is_small ? 1000.0f : -1.0f;
    problem.part[at] = static_cast<float>(problem.sums[at]) + problem.whole[at];
  }
  check(problem, "");
  CHECK((problem.run() == std::vector<bool>{true, false, true}));
}

// What is no number, what rounding leaves below zero, and what nothing is divided by.
TEST(conv_rest_of_odd_numbers) {
  for (const bool has_factor : {false, true}) {
    Problem problem({1, 16, 64, {4, 8}, {1, 1}, {1, 1}, {0, 0}, {1, 1}}, true, has_factor);
    for (int64_t at = 0; at < problem.map(); ++at) {
      problem.whole[at] = -1.0f;
      problem.part[at] = static_cast<float>(problem.sums[at]) + problem.whole[at];
    }
    problem.whole[3] = kNone;
    problem.part[700] = kNone;
    problem.part[1000] = -0.5f, problem.whole[1000] = 0.0f;
    problem.part[1001] = 0.0f, problem.whole[1001] = 0.0f;
    problem.whole[1500] = std::numeric_limits<float>::infinity();
    for (const int64_t at : {3, 700, 1000, 1001, 1500}) {
      has_factor ? void(problem.factor[at] = 1.0f) : void();
    }
    CHECK(problem.run() == std::vector<bool>{true});
    for (const int64_t at : {3, 700, 1000, 1500}) {
      CHECK_FOR(near(problem.below[at], share(problem.sums[at], 1.0, kBeta)), std::to_string(at));
    }
    CHECK(near(problem.below[1001], has_factor ? share(problem.sums[1001], 1.0, kBeta) : share(0.0, 1.0, kBeta)));
    CHECK(problem.above[700] != problem.above[700]);
  }
  // Where the factor is zero neither is read.
  Problem problem({1, 16, 64, {4, 8}, {1, 1}, {1, 1}, {0, 0}, {1, 1}}, true, true);
  std::fill(problem.factor.begin(), problem.factor.end(), 0.0f);
  std::fill(problem.part.begin(), problem.part.end(), kNone);
  CHECK(problem.run() == std::vector<bool>{true});
  const auto none = [](const std::vector<float>& v) { return std::count(v.begin(), v.end(), 0.0f); };
  CHECK(none(problem.above) == problem.map() && none(problem.below) == problem.map());
}

// Outputs that are what all inputs have in common less a sum: those of a sample's part.
TEST(conv_rest_of_box) {
  for (const Shape& shape : kShapes) {
    for (const bool has_shift : {false, true}) {
      for (const bool has_factor : {false, true}) {
        Problem problem(shape, false, has_factor);
        ConvRest& p = problem.p;
        const std::vector<float> shift = native::mixed<float>(has_shift ? p.outputs : 0);
        const std::vector<float> given = native::mixed<float>(problem.map());
        // z = shift - whole makes of `part`, which is every sample's, the sums.
        std::vector<float> part(problem.map()), whole(problem.whole.size());
        for (size_t at = 0; at < whole.size(); ++at) {
          const size_t base = at % part.size();
          part[base] = std::abs(given[base]);
          const float z = static_cast<float>(part[base] - problem.sums[at]);
          whole[at] = (has_shift ? shift[at % p.outputs] : 0.0f) - z;
          problem.whole[at] = (has_shift ? shift[at % p.outputs] : 0.0f) - whole[at];
          problem.part[at] = part[base];
        }
        p.whole = whole.data(), p.part = part.data(), p.above = nullptr, p.bias = nullptr;
        const std::unique_ptr<bool[]> kept(new bool[p.samples]);
        fastlrp::cpu::conv_rest_of_box(p, has_shift ? shift.data() : nullptr, kept.get());
        for (int64_t at = 0; at < p.samples * problem.map(); ++at) {
          const float difference = problem.part[at] - problem.whole[at];
          const bool rounds = problem.factor_at(at) != 0.0f && !(std::abs(whole[at]) <= kMost * difference);
          const double y = problem.is_small(at) || rounds ? problem.sums[at] : double{difference};
          const bool is_right = near(problem.below[at], share(y, problem.factor_at(at), kBeta));
          CHECK(!kept[at / problem.map()] || is_right);
        }
        CHECK(native::on_any_threads(
            "box " + std::to_string(has_shift) + std::to_string(has_factor) + std::to_string(&shape - kShapes.data()),
            problem.below));
      }
    }
  }
}
