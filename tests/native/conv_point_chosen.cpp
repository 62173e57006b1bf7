// Convolutions of one pixel where the input's sign chooses between two weights, against the definition in double.
#include <algorithm>

#include "../../csrc/cpu/conv_point.h"
#include "check.h"

using fastlrp::cpu::ConvPointChosen;
using fastlrp::cpu::point_lanes;

namespace {

struct Shape {
  int64_t samples, targets, inputs, outputs;
  int64_t size[2], stride[2];
};

// A weight (Co, Ci) as the kernel reads it, with zeros up to whole lanes.
std::vector<float> packed_of(const Shape& s, const std::vector<float>& weight) {
  const int64_t wide = point_lanes(s.outputs), columns = point_lanes(s.inputs);
  std::vector<float> filled(wide * columns, 0.0f), packed = native::poisoned<float>(wide * columns);
  for (int64_t o = 0; o < s.outputs; ++o) {
    std::copy_n(weight.data() + o * s.inputs, s.inputs, filled.data() + o * columns);
  }
  fastlrp::cpu::conv_point_pack(wide, columns, filled.data(), columns, 1, 0, wide, packed.data());
  return packed;
}

void compare(const Shape& s) {
  ConvPointChosen p{{s.samples}, s.targets, s.outputs, s.inputs, 1};
  for (int axis = 0; axis < 2; ++axis) {
    p.maps.size[axis] = s.size[axis];
    p.maps.stride[axis] = s.stride[axis];
    p.maps.out_size[axis] = (s.size[axis] - 1) / s.stride[axis] + 1;
  }
  const int64_t area = p.maps.out_area(), map = s.size[0] * s.size[1], all = s.samples * s.targets;
  const std::vector<float> relevance = native::mixed<float>(all * area * s.outputs);
  const std::vector<float> coefficient = native::mixed<float>(s.samples * area * s.outputs);
  const std::vector<float> above = native::mixed<float>(s.outputs * s.inputs);
  std::vector<float> below = above, sign = native::mixed<float>(s.samples * map * s.inputs);
  std::reverse(below.begin(), below.end());
  for (size_t at = 0; at < sign.size(); at += 5) {
    sign[at] = 0;
  }
  std::vector<double> wanted(all * map * s.inputs);
  for (int64_t row = 0; row < all * area; ++row) {
    const int64_t place = row % area, sample = row / area / s.targets;
    const int64_t pixel =
        place / p.maps.out_size[1] * s.stride[0] * s.size[1] + place % p.maps.out_size[1] * s.stride[1];
    for (int64_t i = 0; i < s.inputs; ++i) {
      const float by = sign[(sample * map + pixel) * s.inputs + i];
      double sum = 0;
      for (int64_t o = 0; o < s.outputs; ++o) {
        sum += static_cast<double>(relevance[row * s.outputs + o]) *
               coefficient[(sample * area + place) * s.outputs + o] * (by > 0 ? above : below)[o * s.inputs + i];
      }
      wanted[(row / area * map + pixel) * s.inputs + i] = by == 0 ? 0 : sum;
    }
  }
  const std::vector<float> first = packed_of(s, above), second = packed_of(s, below);
  const float* data[] = {coefficient.data()};
  std::vector<float> y = native::poisoned<float>(all * map * s.inputs);
  p.relevance = relevance.data(), p.coefficients = data, p.above = first.data(), p.below = second.data();
  p.sign = sign.data(), p.y = y.data();
  fastlrp::cpu::conv_point_chosen(p);
  const std::string context = "inputs " + std::to_string(s.inputs) + ", outputs " + std::to_string(s.outputs);
  CHECK_FOR(native::close(y, wanted), context);
  CHECK_FOR(native::on_any_threads("point chosen " + context, y), context);
}

}  // namespace

// Channels in whole lanes, one more and one less; more of them than are summed at once; strides, which leave pixels
// out.
TEST(conv_point_chosen) {
  compare({2, 3, 32, 48, {5, 7}, {1, 1}});
  compare({1, 2, 17, 15, {6, 5}, {2, 2}});
  compare({3, 1, 1, 1, {4, 1}, {3, 1}});
  compare({1, 5, 273, 20, {9, 9}, {1, 1}});
}
