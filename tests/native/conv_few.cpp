// Transposes of convolutions with few input channels, against the definition in double.
#include "../../csrc/cpu/conv_few.h"

#include <algorithm>

#include "../../csrc/common/bf16_unit.h"
#include "check.h"

using fastlrp::Bf16;
using fastlrp::cpu::ConvFew;
using fastlrp::cpu::ConvFewOf;
using fastlrp::cpu::FewShape;

namespace {

struct Shape {
  int64_t samples, outputs, channels;
  int64_t size[2], kernel[2], stride[2], padding[2];
};

std::string context(const Shape& s) {
  return "height " + std::to_string(s.size[0]) + ", width " + std::to_string(s.size[1]) + ", channels " +
         std::to_string(s.channels);
}

// Everything but what is read and written.
ConvFew convolution(const Shape& s) {
  ConvFew p{s.samples, s.outputs, s.channels};
  for (int axis = 0; axis < 2; ++axis) {
    p.size[axis] = s.size[axis];
    p.kernel[axis] = s.kernel[axis];
    p.stride[axis] = s.stride[axis];
    p.padding[axis] = s.padding[axis];
    p.out_size[axis] = (s.size[axis] + 2 * s.padding[axis] - s.kernel[axis]) / s.stride[axis] + 1;
  }
  return p;
}

int64_t out_map(const FewShape& p) { return p.out_size[0] * p.out_size[1] * p.outputs; }
int64_t map(const FewShape& p) { return p.size[0] * p.size[1] * p.channels; }

std::vector<double> definition(const ConvFew& p, const std::vector<float>& weight) {
  std::vector<double> y(p.samples * map(p));
  for (int64_t at = 0; at < p.samples * out_map(p); ++at) {
    const int64_t o = at % p.outputs, column = at / p.outputs % p.out_size[1];
    const int64_t row = at / p.outputs / p.out_size[1] % p.out_size[0], sample = at / out_map(p);
    const double scale = p.scale == nullptr ? 1.0 : p.scale[sample / p.targets * out_map(p) + at % out_map(p)];
    for (int64_t tap = 0; tap < p.kernel[0] * p.kernel[1]; ++tap) {
      const int64_t h = row * p.stride[0] - p.padding[0] + tap / p.kernel[1];
      const int64_t w = column * p.stride[1] - p.padding[1] + tap % p.kernel[1];
      for (int64_t c = 0; h >= 0 && h < p.size[0] && w >= 0 && w < p.size[1] && c < p.channels; ++c) {
        y[sample * map(p) + (h * p.size[1] + w) * p.channels + c] +=
            scale * p.x[at] * weight[(o * p.channels + c) * p.kernel[0] * p.kernel[1] + tap];
      }
    }
  }
  return y;
}

void compare(const Shape& s, bool scaled) {
  ConvFew p = convolution(s);
  p.targets = s.samples % 2 == 0 ? 2 : 1;
  const std::vector<float> x = native::mixed<float>(s.samples * out_map(p));
  const std::vector<float> scale = native::mixed<float>(scaled ? s.samples / p.targets * out_map(p) : 0);
  const std::vector<float> weight = native::mixed<float>(s.outputs * s.channels * s.kernel[0] * s.kernel[1]);
  std::vector<float> packed = native::poisoned<float>(s.outputs * p.columns());
  std::vector<float> y = native::poisoned<float>(s.samples * map(p));
  fastlrp::cpu::conv_few_pack(p, weight.data(), packed.data());
  p.x = x.data(), p.scale = scaled ? scale.data() : nullptr, p.weight = packed.data(), p.y = y.data();
  fastlrp::cpu::conv_few(p);
  CHECK_FOR(native::close(y, definition(p, weight)), context(s));
  CHECK_FOR(native::on_any_threads("few " + std::to_string(scaled) + context(s), y), context(s));
  // A sample alone, whose rows more threads share, is what it is in the batch.
  for (int64_t sample = 0; sample < s.samples; ++sample) {
    std::vector<float> alone = native::poisoned<float>(map(p));
    ConvFew one = p;
    one.samples = 1, one.x += sample * out_map(p), one.y = alone.data();
    one.scale = scaled ? scale.data() + sample / p.targets * out_map(p) : nullptr;
    fastlrp::cpu::conv_few(one);
    CHECK_FOR(std::equal(alone.begin(), alone.end(), y.begin() + sample * map(p)), context(s));
  }
}

// Products of bfloat16, whose operands are what the definition is given: each unit gives the same bits.
template <class From>
void compare_narrow(const Shape& s, bool scaled) {
  ConvFew exact = convolution(s);
  exact.targets = s.samples % 2 == 0 ? 2 : 1;
  ConvFewOf<From, Bf16> p{exact};
  std::vector<From> x;
  for (const float value : native::mixed<float>(s.samples * out_map(p))) {
    x.emplace_back(value);
  }
  const std::vector<float> scale = native::mixed<float>(scaled ? s.samples / p.targets * out_map(p) : 0);
  std::vector<float> weight = native::mixed<float>(s.outputs * s.channels * s.kernel[0] * s.kernel[1]);
  std::vector<float> rows;
  for (int64_t at = 0; at < s.samples * out_map(p); ++at) {
    const float times = scaled ? scale[at / out_map(p) / p.targets * out_map(p) + at % out_map(p)] : 1.0f;
    rows.push_back(Bf16(static_cast<float>(x[at]) * times));
  }
  std::vector<Bf16> packed(s.outputs * p.columns());
  std::vector<float> y = native::poisoned<float>(s.samples * map(p));
  fastlrp::cpu::conv_few_pack(p, weight.data(), packed.data());
  p.x = x.data(), p.scale = scaled ? scale.data() : nullptr, p.weight = packed.data(), p.y = y.data();
  for (float& value : weight) {
    value = Bf16(value);
  }
  exact.x = rows.data(), exact.scale = nullptr;
  std::vector<float> first;
  for (const std::string& unit : fastlrp::available_bf16_units()) {
    if (unit == "software" || unit == "avx512_bf16") {
      fastlrp::set_bf16_unit(unit);
      std::fill(y.begin(), y.end(), std::numeric_limits<float>::quiet_NaN());
      fastlrp::cpu::conv_few(p);
      CHECK_FOR(native::close(y, definition(exact, weight)), context(s));
      first = first.empty() ? y : first;
      CHECK_FOR(y == first, context(s));
    }
  }
  fastlrp::set_bf16_unit("auto");
  const std::string name = "narrow few " + std::to_string(sizeof(From)) + std::to_string(scaled) + context(s);
  CHECK_FOR(native::on_any_threads(name, y), context(s));
}

// One row, one column, one pixel; kernels as large as the map with its padding; padding larger than the map, whose
// outermost outputs read none of it; strides longer than the kernel, which leave rows and columns out; columns in one
// panel, in a whole number of panels and one more; more positions than are multiplied at once.
const std::vector<Shape> kShapes = {
    {4, 16, 3, {9, 31}, {3, 3}, {1, 1}, {1, 1}},  {1, 32, 6, {33, 30}, {7, 7}, {2, 2}, {3, 3}},
    {3, 16, 1, {1, 29}, {1, 5}, {1, 3}, {0, 4}},  {2, 48, 8, {18, 19}, {4, 4}, {4, 4}, {0, 0}},
    {2, 16, 1, {1, 1}, {1, 1}, {1, 1}, {0, 0}},   {2, 16, 5, {2, 3}, {2, 3}, {1, 1}, {7, 9}},
    {1, 16, 2, {8, 1}, {8, 1}, {1, 1}, {0, 0}},   {5, 32, 16, {7, 4}, {2, 1}, {3, 5}, {2, 0}},
    {1, 80, 17, {5, 60}, {1, 1}, {1, 1}, {0, 0}}, {0, 16, 3, {5, 4}, {3, 3}, {1, 1}, {1, 1}}};

}  // namespace

TEST(conv_few) {
  for (const Shape& shape : kShapes) {
    compare(shape, false);
    compare(shape, true);
    for (const bool scaled : {false, true}) {
      compare_narrow<float>(shape, scaled);
      compare_narrow<Bf16>(shape, scaled);
    }
  }
}

// What is not a number reaches the pixels that its window reads, and none beside them.
TEST(conv_few_not_a_number) {
  ConvFew p = convolution({1, 16, 3, {9, 31}, {3, 3}, {2, 2}, {1, 1}});
  std::vector<float> x = native::mixed<float>(out_map(p)), y = native::poisoned<float>(map(p));
  x[(2 * p.out_size[1] + 3) * p.outputs + 5] = std::numeric_limits<float>::quiet_NaN();
  std::vector<float> packed = native::poisoned<float>(p.outputs * p.columns());
  fastlrp::cpu::conv_few_pack(p, native::mixed<float>(p.outputs * p.channels * 9).data(), packed.data());
  p.x = x.data(), p.scale = nullptr, p.targets = 1, p.weight = packed.data(), p.y = y.data();
  fastlrp::cpu::conv_few(p);
  for (int64_t at = 0; at < map(p); ++at) {
    const int64_t h = at / p.channels / p.size[1], w = at / p.channels % p.size[1];
    CHECK((y[at] != y[at]) == (h >= 3 && h < 6 && w >= 5 && w < 8));
  }
}
