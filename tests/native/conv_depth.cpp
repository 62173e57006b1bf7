// Transposes of depthwise convolutions, against the definition in double.
#include "../../csrc/cpu/conv_depth.h"

#include <algorithm>

#include "check.h"

using fastlrp::cpu::ConvDepth;

namespace {

struct Shape {
  int64_t samples, channels;
  int64_t size[2], kernel[2], stride[2], padding[2], dilation[2];
};

std::string context(const Shape& s) {
  return "height " + std::to_string(s.size[0]) + ", width " + std::to_string(s.size[1]) + ", channels " +
         std::to_string(s.channels);
}

// Everything but what is read and written.
ConvDepth convolution(const Shape& s) {
  ConvDepth p{s.samples, s.channels};
  for (int axis = 0; axis < 2; ++axis) {
    p.size[axis] = s.size[axis];
    p.kernel[axis] = s.kernel[axis];
    p.stride[axis] = s.stride[axis];
    p.padding[axis] = s.padding[axis];
    p.dilation[axis] = s.dilation[axis];
    p.out_size[axis] =
        (s.size[axis] + 2 * s.padding[axis] - s.dilation[axis] * (s.kernel[axis] - 1) - 1) / s.stride[axis] + 1;
  }
  return p;
}

int64_t out_map(const ConvDepth& p) { return p.out_size[0] * p.out_size[1] * p.channels; }
int64_t map(const ConvDepth& p) { return p.size[0] * p.size[1] * p.channels; }

std::vector<double> definition(const ConvDepth& p) {
  std::vector<double> y(p.samples * map(p));
  const int64_t taps = p.kernel[0] * p.kernel[1];
  for (int64_t at = 0; at < p.samples * out_map(p); ++at) {
    const int64_t c = at % p.channels, column = at / p.channels % p.out_size[1];
    const int64_t row = at / p.channels / p.out_size[1] % p.out_size[0], sample = at / out_map(p);
    const double scale = p.scale == nullptr ? 1.0 : p.scale[sample / p.targets * out_map(p) + at % out_map(p)];
    for (int64_t tap = 0; tap < taps; ++tap) {
      const int64_t h = row * p.stride[0] - p.padding[0] + tap / p.kernel[1] * p.dilation[0];
      const int64_t w = column * p.stride[1] - p.padding[1] + tap % p.kernel[1] * p.dilation[1];
      if (h >= 0 && h < p.size[0] && w >= 0 && w < p.size[1]) {
        const int64_t place = (h * p.size[1] + w) * p.channels + c;
        const float sign = p.sign == nullptr ? 1.0f : p.sign[sample / p.targets * map(p) + place];
        const double weight = p.weight[((sign > 0 ? 0 : taps) + tap) * p.channels + c];
        y[sample * map(p) + place] += sign == 0 ? 0.0 : scale * p.x[at] * weight;
      }
    }
  }
  return y;
}

void compare(const Shape& s, bool scaled, bool split) {
  ConvDepth p = convolution(s);
  p.targets = s.samples % 2 == 0 ? 2 : 1;
  const int64_t own = s.samples / p.targets;
  const std::vector<float> x = native::mixed<float>(s.samples * out_map(p));
  const std::vector<float> scale = native::mixed<float>(scaled ? own * out_map(p) : 0);
  std::vector<float> sign = native::mixed<float>(split ? own * map(p) : 0);
  for (size_t at = 0; at < sign.size(); at += 7) {
    sign[at] = 0;
  }
  const std::vector<float> weight = native::mixed<float>((split ? 2 : 1) * s.channels * s.kernel[0] * s.kernel[1]);
  std::vector<float> y = native::poisoned<float>(s.samples * map(p));
  p.x = x.data(), p.scale = scaled ? scale.data() : nullptr, p.sign = split ? sign.data() : nullptr;
  p.weight = weight.data(), p.y = y.data();
  fastlrp::cpu::conv_depth(p);
  CHECK_FOR(native::close(y, definition(p)), context(s));
  const std::string name = "depth " + std::to_string(scaled) + std::to_string(split) + context(s);
  CHECK_FOR(native::on_any_threads(name, y), context(s));
  // A sample alone, whose rows more threads share, is what it is in the batch.
  for (int64_t sample = 0; sample < s.samples; ++sample) {
    std::vector<float> alone = native::poisoned<float>(map(p));
    ConvDepth one = p;
    one.samples = 1, one.x += sample * out_map(p), one.y = alone.data();
    one.scale = scaled ? scale.data() + sample / p.targets * out_map(p) : nullptr;
    one.sign = split ? sign.data() + sample / p.targets * map(p) : nullptr;
    fastlrp::cpu::conv_depth(one);
    CHECK_FOR(std::equal(alone.begin(), alone.end(), y.begin() + sample * map(p)), context(s));
  }
}

// One row, one column, one pixel; kernels as large as the map with its padding; padding larger than the map; strides
// longer than the kernel, which leave rows and columns out; holes between taps, with strides that miss some of them;
// channels that fill registers, and one more.
const std::vector<Shape> kShapes = {
    {4, 16, {9, 31}, {3, 3}, {1, 1}, {1, 1}, {1, 1}},  {1, 33, {33, 30}, {7, 7}, {2, 2}, {3, 3}, {1, 1}},
    {3, 17, {1, 29}, {1, 5}, {1, 3}, {0, 4}, {1, 1}},  {2, 48, {18, 19}, {4, 4}, {4, 4}, {0, 0}, {1, 1}},
    {2, 16, {1, 1}, {1, 1}, {1, 1}, {0, 0}, {1, 1}},   {2, 20, {2, 3}, {2, 3}, {1, 1}, {7, 9}, {1, 1}},
    {1, 16, {8, 1}, {8, 1}, {1, 1}, {0, 0}, {1, 1}},   {5, 32, {7, 4}, {2, 1}, {3, 5}, {2, 0}, {1, 1}},
    {2, 31, {17, 12}, {3, 3}, {1, 2}, {2, 3}, {2, 3}}, {2, 24, {15, 14}, {4, 3}, {3, 2}, {1, 4}, {2, 4}},
    {0, 16, {5, 4}, {3, 3}, {1, 1}, {1, 1}, {1, 1}}};

}  // namespace

TEST(conv_depth) {
  for (const Shape& shape : kShapes) {
    for (const bool scaled : {false, true}) {
      compare(shape, scaled, false);
      compare(shape, scaled, true);
    }
  }
}
