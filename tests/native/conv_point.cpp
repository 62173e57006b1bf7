// Convolutions of one pixel by products of float32 and of bfloat16, against the definition in double.
#include "../../csrc/cpu/conv_point.h"

#include "../../csrc/common/bf16_unit.h"
#include "check.h"

using fastlrp::Bf16;
using fastlrp::Rule;
using fastlrp::cpu::ConvPointSums;
using fastlrp::cpu::ConvPointTransposed;
using fastlrp::cpu::PointMaps;

namespace {

struct Shape {
  int64_t samples, inputs, outputs;
  int64_t size[2], stride[2];
};

std::string context(const Shape& s) {
  return "inputs " + std::to_string(s.inputs) + ", outputs " + std::to_string(s.outputs) + ", height " +
         std::to_string(s.size[0]) + ", width " + std::to_string(s.size[1]);
}

PointMaps maps_of(const Shape& s) {
  PointMaps maps{s.samples};
  for (int axis = 0; axis < 2; ++axis) {
    maps.size[axis] = s.size[axis];
    maps.stride[axis] = s.stride[axis];
    maps.out_size[axis] = (s.size[axis] - 1) / s.stride[axis] + 1;
  }
  return maps;
}

std::vector<float> at_least_zero(int64_t size) {
  std::vector<float> values = native::mixed<float>(size);
  for (float& value : values) {
    value = std::abs(value);
  }
  return values;
}

// The input pixel of a row of all outputs.
int64_t pixel(const PointMaps& maps, int64_t row) {
  const int64_t map = row / maps.out_area(), place = row % maps.out_area();
  const int64_t h = place / maps.out_size[1] * maps.stride[0], w = place % maps.out_size[1] * maps.stride[1];
  return (map * maps.size[0] + h) * maps.size[1] + w;
}

// Each unit that works by registers: they give the same bits.
template <class Body>
void with_units(const Body& body) {
  for (const std::string& unit : fastlrp::available_bf16_units()) {
    if (unit == "software" || unit == "avx512_bf16") {
      fastlrp::set_bf16_unit(unit);
      body();
    }
  }
  fastlrp::set_bf16_unit("auto");
}

template <class Number>
void compare_sums(const Shape& s, Rule rule, bool plain) {
  ConvPointSums<Number> p{maps_of(s), s.inputs, s.outputs};
  const int64_t rows = s.samples * p.maps.out_area(), count = rows * s.outputs;
  const std::vector<float> x = at_least_zero(s.samples * s.size[0] * s.size[1] * s.inputs);
  const std::vector<float> weight = at_least_zero(s.inputs * s.outputs), bias = at_least_zero(s.outputs);
  const std::vector<float> z = rule == Rule::gamma ? native::mixed<float>(count) : at_least_zero(count);
  const std::vector<float> factor = native::mixed<float>(count), times = native::mixed<float>(count);
  std::vector<Number> packed(s.inputs * s.outputs);
  fastlrp::cpu::conv_point_pack(s.inputs, s.outputs, weight.data(), 1, s.inputs, 0, s.inputs, packed.data());
  std::vector<float> u = native::poisoned<float>(rule == Rule::zplus ? 0 : count);
  std::vector<float> v = native::poisoned<float>(rule == Rule::epsilon ? 0 : count);
  p.x = x.data(), p.weight = packed.data(), p.bias = plain ? nullptr : bias.data();
  p.rule = rule, p.alpha = 0.25f, p.epsilon = 0.5f;
  p.z = rule == Rule::zplus ? nullptr : z.data(), p.factor = plain ? nullptr : factor.data();
  const bool multiplies = !plain && s.inputs == 32;
  p.times = multiplies ? times.data() : nullptr;
  p.u = u.empty() ? nullptr : u.data(), p.v = v.empty() ? nullptr : v.data();
  std::vector<double> of_u, of_v;
  for (int64_t at = 0; at < count; ++at) {
    const int64_t row = at / s.outputs, o = at % s.outputs;
    double sum = plain ? 0 : bias[o];
    for (int64_t i = 0; i < s.inputs; ++i) {
      sum += static_cast<double>(Number(x[pixel(p.maps, row) * s.inputs + i])) * Number(weight[o * s.inputs + i]);
    }
    const double f = plain ? 1 : multiplies ? factor[at] * times[at] : factor[at];
    if (rule == Rule::zplus) {
      of_v.push_back(0.25 * f / (sum + 0.5));
    } else if (rule == Rule::epsilon) {
      of_u.push_back(f / (z[at] + 0.25 * sum + 0.5));
    } else {
      const bool above = z[at] > 0;
      const double divisor = above ? z[at] + 0.25 * sum + 0.5 : z[at] + 0.25 * (z[at] - sum) - 0.5;
      const double quotient = z[at] == 0 ? 0 : f / divisor;
      of_u.push_back(above ? quotient : 1.25 * quotient);
      of_v.push_back((above ? 0.25 : -0.25) * quotient);
    }
  }
  with_units([&] {
    std::fill(u.begin(), u.end(), std::numeric_limits<float>::quiet_NaN());
    std::fill(v.begin(), v.end(), std::numeric_limits<float>::quiet_NaN());
    fastlrp::cpu::conv_point_sums(p);
    CHECK_FOR(native::close(u, of_u) && native::close(v, of_v), context(s));
    const std::string name = "point sums " + std::to_string(sizeof(Number)) + std::to_string(static_cast<int>(rule)) +
                             std::to_string(plain) + context(s);
    CHECK_FOR(native::on_any_threads("u of " + name, u) && native::on_any_threads("v of " + name, v), context(s));
  });
}

template <class From, class Number, class To>
void compare_transposed(const Shape& s, int64_t targets, int64_t parts) {
  ConvPointTransposed<From, Number, To> p{maps_of(s), targets, s.outputs, s.inputs, parts};
  const int64_t area = p.maps.out_area(), map = s.size[0] * s.size[1] * s.inputs, all = s.samples * targets;
  std::vector<From> relevance;
  for (const float value : native::mixed<float>(all * area * s.outputs)) {
    relevance.emplace_back(value);
  }
  std::vector<std::vector<float>> coefficients, weights;
  std::vector<const float*> data;
  std::vector<Number> packed(parts * s.outputs * s.inputs);
  std::vector<To> y(all * map);
  for (int64_t part = 0; part < parts; ++part) {
    coefficients.push_back(native::mixed<float>(s.samples * area * s.outputs));
    weights.push_back(native::mixed<float>(s.outputs * s.inputs));
    fastlrp::cpu::conv_point_pack(s.outputs, s.inputs, weights.back().data(), s.inputs, 1, part * s.outputs,
                                  parts * s.outputs, packed.data());
  }
  for (const std::vector<float>& coefficient : coefficients) {
    data.push_back(coefficient.data());
  }
  std::vector<double> expected(all * map);
  for (int64_t row = 0; row < all * area; ++row) {
    for (int64_t part = 0; part < parts; ++part) {
      const float* coefficient = data[part] + (row / area / targets * area + row % area) * s.outputs;
      for (int64_t o = 0; o < s.outputs; ++o) {
        const double given = Number(static_cast<float>(relevance[row * s.outputs + o]) * coefficient[o]);
        for (int64_t i = 0; i < s.inputs; ++i) {
          expected[pixel(p.maps, row) * s.inputs + i] += given * Number(weights[part][o * s.inputs + i]);
        }
      }
    }
  }
  p.relevance = relevance.data(), p.coefficients = data.data(), p.weight = packed.data(), p.y = y.data();
  with_units([&] {
    std::fill(y.begin(), y.end(), To(std::numeric_limits<float>::quiet_NaN()));
    fastlrp::cpu::conv_point_transposed(p);
    double largest = 1;
    std::vector<float> found;
    for (size_t at = 0; at < y.size(); ++at) {
      largest = std::max(largest, std::abs(expected[at]));
      found.push_back(y[at]);
    }
    // Rounded once, to 8 bits or not at all, beside the rounding of float's sums.
    const double rounding = std::is_same_v<To, float> ? 0 : 1.0 / 256;
    for (size_t at = 0; at < y.size(); ++at) {
      CHECK_FOR(std::abs(found[at] - expected[at]) <= std::abs(expected[at]) * rounding + largest * 1e-6, context(s));
    }
    CHECK_FOR(native::on_any_threads("point down " + std::to_string(sizeof(From)) + std::to_string(sizeof(Number)) +
                                         std::to_string(sizeof(To)) + std::to_string(parts) + context(s),
                                     found),
              context(s));
  });
}

void compare_forward(const Shape& s, bool plain) {
  const PointMaps maps = maps_of(s);
  const int64_t rows = s.samples * maps.out_area();
  const std::vector<float> x = native::mixed<float>(s.samples * s.size[0] * s.size[1] * s.inputs);
  const std::vector<float> weight = native::mixed<float>(s.inputs * s.outputs), bias = native::mixed<float>(s.outputs);
  std::vector<float> packed(weight.size()), y = native::poisoned<float>(rows * s.outputs);
  fastlrp::cpu::conv_point_pack(s.inputs, s.outputs, weight.data(), 1, s.inputs, 0, s.inputs, packed.data());
  std::vector<double> expected;
  for (int64_t at = 0; at < rows * s.outputs; ++at) {
    const int64_t row = at / s.outputs, o = at % s.outputs;
    double sum = plain ? 0 : bias[o];
    for (int64_t i = 0; i < s.inputs; ++i) {
      sum += static_cast<double>(x[pixel(maps, row) * s.inputs + i]) * weight[o * s.inputs + i];
    }
    expected.push_back(plain ? sum : std::max(0.0, sum));
  }
  fastlrp::cpu::conv_point(
      {maps, s.inputs, s.outputs, x.data(), packed.data(), plain ? nullptr : bias.data(), !plain, y.data()});
  CHECK_FOR(native::close(y, expected), context(s));
  CHECK_FOR(native::on_any_threads("point " + std::to_string(plain) + context(s), y), context(s));
}

// One pixel; strides that leave out rows, columns or both, with and without an input behind the last output; more rows
// than one block and no whole number of registers of them; one to seven panels, and
// more than are finished at once; no sample.
const std::vector<Shape> kShapes = {
    {1, 16, 16, {1, 1}, {1, 1}}, {2, 32, 48, {5, 7}, {1, 1}},  {1, 48, 80, {6, 5}, {2, 2}},
    {3, 16, 96, {7, 4}, {3, 1}}, {1, 64, 112, {3, 3}, {2, 3}}, {1, 32, 64, {13, 29}, {1, 1}},
    {0, 16, 16, {2, 2}, {1, 1}}, {1, 16, 320, {9, 8}, {1, 1}}, {1, 320, 32, {9, 8}, {1, 1}}};

}  // namespace

TEST(conv_point) {
  for (const Shape& shape : kShapes) {
    compare_forward(shape, false);
    compare_forward(shape, true);
  }
}

TEST(conv_point_sums) {
  for (const Shape& shape : kShapes) {
    for (const Rule rule : {Rule::epsilon, Rule::zplus, Rule::gamma}) {
      compare_sums<Bf16>(shape, rule, false);
      compare_sums<Bf16>(shape, rule, true);
      compare_sums<float>(shape, rule, false);
      compare_sums<float>(shape, rule, true);
    }
  }
}

TEST(conv_point_transposed) {
  for (const Shape& shape : kShapes) {
    compare_transposed<float, Bf16, Bf16>(shape, 1, 1);
    compare_transposed<Bf16, Bf16, Bf16>(shape, 3, 2);
    compare_transposed<float, Bf16, float>(shape, 1, 1);
    compare_transposed<Bf16, Bf16, float>(shape, 3, 2);
    compare_transposed<float, float, float>(shape, 1, 1);
    compare_transposed<float, float, float>(shape, 3, 2);
  }
}

// What is not a number reaches the channels of its own pixel alone.
TEST(conv_point_not_a_number) {
  const Shape s{1, 16, 32, {4, 5}, {1, 1}};
  ConvPointTransposed<float, Bf16, Bf16> p{maps_of(s), 1, s.outputs, s.inputs, 1};
  std::vector<float> relevance = native::mixed<float>(20 * s.outputs), coefficient(20 * s.outputs, 1.0f);
  relevance[7 * s.outputs + 3] = std::numeric_limits<float>::quiet_NaN();
  std::vector<Bf16> packed(s.outputs * s.inputs), y(20 * s.inputs);
  fastlrp::cpu::conv_point_pack(s.outputs, s.inputs, native::mixed<float>(s.outputs * s.inputs).data(), s.inputs, 1, 0,
                                s.outputs, packed.data());
  const float* data[] = {coefficient.data()};
  p.relevance = relevance.data(), p.coefficients = data, p.weight = packed.data(), p.y = y.data();
  std::vector<float> values(20 * s.inputs), forward(20 * s.outputs), full(s.outputs * s.inputs, 1.0f);
  values[7 * s.inputs + 3] = std::numeric_limits<float>::quiet_NaN();
  fastlrp::cpu::conv_point(
      {maps_of(s), s.inputs, s.outputs, values.data(), full.data(), nullptr, true, forward.data()});
  for (int64_t at = 0; at < 20 * s.outputs; ++at) {
    CHECK((forward[at] != forward[at]) == (at / s.outputs == 7));
  }
  with_units([&] {
    fastlrp::cpu::conv_point_transposed(p);
    for (int64_t at = 0; at < 20 * s.inputs; ++at) {
      const float value = y[at];
      CHECK((value != value) == (at / s.inputs == 7));
    }
  });
}
