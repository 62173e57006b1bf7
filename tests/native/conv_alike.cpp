// Places of 3x3 convolutions that read the same numbers, and tiles of several levels, against their definitions.
#include <algorithm>
#include <cstring>

#include "../../csrc/cpu/conv_winograd_levels.h"
#include "../../csrc/cpu/conv_winograd_places.h"
#include "check.h"

using fastlrp::cpu::Winograd;
using fastlrp::cpu::WinogradAlike;
using fastlrp::cpu::WinogradTile;

namespace {

constexpr int64_t kInputs = 16, kOutputs = 32;
constexpr float kInfinite = std::numeric_limits<float>::infinity();

struct Shape {
  int64_t samples, height, width, top, left;
};

// One row, column or place; sides that are no multiples of a tile's; padding larger than the map, and around none at
// all; rows and places for several threads.
const std::vector<Shape> kShapes = {{2, 9, 11, 1, 1}, {1, 4, 4, 0, 0},  {3, 1, 13, 1, 2}, {2, 14, 1, 0, 2},
                                    {1, 1, 1, 1, 1},  {2, 1, 1, 2, 2},  {1, 0, 5, 2, 1},  {1, 3, 0, 0, 2},
                                    {0, 5, 5, 1, 1},  {2, 25, 26, 1, 1}};

// Stripes: flat, noise, zeros of both signs, dust beside either and dust of dust; with some numbers that are none.
std::vector<float> picture(const Shape& s, bool finite) {
  std::vector<float> x(s.samples * s.height * s.width * kInputs);
  const std::vector<float> flat = native::mixed<float>(kInputs), noise = native::mixed<float>(x.size());
  constexpr float kScales[] = {1.0f, 1.0f, 0.03f, 1e-5f, 1e-20f, 0.0f};
  std::vector<int64_t> kinds(s.width + s.height);
  std::generate(kinds.begin(), kinds.end(), [] { return native::integer(0, 11); });
  for (size_t i = 0; i < x.size(); ++i) {
    const int64_t place = static_cast<int64_t>(i) / kInputs, c = static_cast<int64_t>(i) % kInputs;
    const int64_t column = place % s.width, row = place / s.width % s.height;
    const int64_t kind = kinds[s.height / 2 > row ? column / 3 : s.width + row / 3];
    x[i] = (kind % 2 == 0 ? flat[c] : noise[i]) * kScales[kind / 2];
    // One half of the channels is dust of the other.
    x[i] *= row % 8 > 4 && c > 7 ? 1e-16f : 1.0f;
    x[i] = finite && x[i] == 0.0f && native::integer(0, 1) == 0 ? -0.0f : x[i];
  }
  for (int64_t i = 0; !finite && i < static_cast<int64_t>(x.size()); i += native::integer(300, 900)) {
    x[i] = native::integer(0, 1) == 0 ? std::numeric_limits<float>::quiet_NaN() : -kInfinite;
  }
  return x;
}

struct Problem {
  Winograd p;
  std::vector<float> x, bias, weight, packed, y;

  Problem(const Shape& s, bool finite)
      : p{s.samples, s.height, s.width, kInputs, s.height + 2 * s.top - 2, s.width + 2 * s.left - 2, kOutputs},
        x(picture(s, finite)),
        bias(native::mixed<float>(kOutputs)),
        weight(native::mixed<float>(kOutputs * kInputs * 9)),
        packed(native::poisoned<float>(36 * kOutputs * kInputs)),
        y(native::poisoned<float>(s.samples * places() * kOutputs)) {
    fastlrp::cpu::winograd_pack(kOutputs, kInputs, weight.data(), false, packed.data());
    p.top = s.top, p.left = s.left, p.x = x.data(), p.weight = packed.data(), p.bias = bias.data(), p.y = y.data();
    p.alike = true;
  }

  int64_t places() const { return p.out_height * p.out_width; }

  // The inputs of tap `tap` of an output; null outside of the map.
  const float* read(int64_t sample, int64_t place, int64_t tap) const {
    const int64_t h = place / p.out_width + tap / 3 - p.top, w = place % p.out_width + tap % 3 - p.left;
    const bool inside = h >= 0 && h < p.height && w >= 0 && w < p.width;
    return inside ? x.data() + ((sample * p.height + h) * p.width + w) * kInputs : nullptr;
  }

  float largest(const float* numbers) const {
    float found = 0.0f;
    for (int64_t c = 0; numbers != nullptr && c < kInputs; ++c) {
      found = std::isfinite(numbers[c]) ? std::max(found, std::abs(numbers[c])) : kInfinite;
    }
    return found;
  }

  float largest_of_window(int64_t sample, int64_t place) const {
    float found = 0.0f;
    for (int64_t tap = 0; tap < 9; ++tap) {
      found = std::max(found, largest(read(sample, place, tap)));
    }
    return found;
  }

  // Of place (i, j) of the 6x6 of a tile.
  float largest_in_tile(int64_t sample, int64_t tile, int64_t at) const {
    const int64_t across = (p.out_width + 3) / 4;
    const int64_t h = tile / across * 4 + at / 6 - p.top, w = tile % across * 4 + at % 6 - p.left;
    const bool inside = h >= 0 && h < p.height && w >= 0 && w < p.width;
    return inside ? largest(x.data() + ((sample * p.height + h) * p.width + w) * kInputs) : 0.0f;
  }

  float largest_of_tile(int64_t sample, int64_t tile) const {
    float found = 0.0f;
    for (int64_t at = 0; at < 36; ++at) {
      found = std::max(found, largest_in_tile(sample, tile, at));
    }
    return found;
  }

  int64_t tile_of(int64_t place) const {
    return place / p.out_width / 4 * ((p.out_width + 3) / 4) + place % p.out_width / 4;
  }

  // What an output reads, without dust; what is no number as bits.
  std::vector<float> window(int64_t sample, int64_t place) const {
    const float dust = fastlrp::cpu::winograd_dust(largest_of_window(sample, place));
    std::vector<float> found(9 * kInputs);
    for (int64_t i = 0; i < 9 * kInputs; ++i) {
      const float* numbers = read(sample, place, i / kInputs);
      const float value = numbers == nullptr || std::abs(numbers[i % kInputs]) < dust ? 0.0f : numbers[i % kInputs];
      found[i] = value + 0.0f;
    }
    return found;
  }
};

bool same(const std::vector<float>& a, const std::vector<float>& b) {
  return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

std::string context(const Shape& s) {
  return "height " + std::to_string(s.height) + ", width " + std::to_string(s.width) + ", padding " +
         std::to_string(s.top);
}

void check_alike(const Problem& q, int64_t sample, const WinogradAlike& found, const std::string& context) {
  CHECK_FOR(static_cast<int64_t>(found.largest.size()) == q.p.height * q.p.width, context);
  for (int64_t at = 0; at < q.p.height * q.p.width; ++at) {
    const float* numbers = q.x.data() + (sample * q.p.height * q.p.width + at) * kInputs;
    CHECK_FOR(found.largest[at] == q.largest(numbers), context);
  }
  std::vector<std::vector<float>> windows;
  std::vector<float> sizes;
  for (int64_t place = 0; place < q.places(); ++place) {
    windows.push_back(q.window(sample, place));
    sizes.push_back(q.largest_of_tile(sample, q.tile_of(place)));
  }
  CHECK_FOR(static_cast<int64_t>(found.first.size()) == q.places(), context);
  for (int64_t place = 0; place < q.places(); ++place) {
    int64_t best = place;
    for (int64_t other = 0; other < q.places(); ++other) {
      const bool better = sizes[other] < sizes[best] || (sizes[other] == sizes[best] && other < best);
      best = better && same(windows[other], windows[place]) ? other : best;
    }
    CHECK_FOR(found.first[place] == best, context + ", place " + std::to_string(place));
  }
}

// Each output that is no copy is written once, in a level in which nothing that it reads is left out and what it reads
// is not small.
void check_levels(const Problem& q, int64_t sample, const WinogradAlike& alike, const std::string& context) {
  std::vector<WinogradTile> tiles;
  fastlrp::cpu::winograd_levels(q.p, sample, alike, tiles);
  const int64_t across = (q.p.out_width + 3) / 4, each = (q.p.out_height + 3) / 4 * across;
  std::vector<int> written(q.places());
  for (const WinogradTile& level : tiles) {
    const int64_t tile = level.at - sample * each;
    CHECK_FOR(tile >= 0 && tile < each && level.written != 0, context);
    float most = 0.0f;
    for (int64_t at = 0; at < 36; ++at) {
      most = std::max(most, (level.left_out >> at & 1) != 0 ? 0.0f : q.largest_in_tile(sample, tile, at));
    }
    for (int64_t output = 0; output < 16; ++output) {
      const int64_t row = tile / across * 4 + output / 4, column = tile % across * 4 + output % 4;
      if ((level.written >> output & 1) == 0 || row >= q.p.out_height || column >= q.p.out_width) {
        continue;
      }
      written[row * q.p.out_width + column] += 1;
      float read = 0.0f;
      for (int64_t tap = 0; tap < 9; ++tap) {
        const int64_t at = (output / 4 + tap / 3) * 6 + output % 4 + tap % 3;
        const float size = q.largest_in_tile(sample, tile, at);
        CHECK_FOR(size == 0.0f || (level.left_out >> at & 1) == 0, context);
        read = std::max(read, size);
      }
      CHECK_FOR(read == 0.0f || read * fastlrp::cpu::kLevel >= most, context);
    }
  }
  for (int64_t place = 0; place < q.places(); ++place) {
    CHECK_FOR(alike.first[place] == place ? written[place] == 1 : written[place] <= 1, context);
  }
}

// As exact as the largest number of its window; not a number where that has one, and nowhere else.
void check_sums(Problem& q, const std::string& context) {
  fastlrp::cpu::winograd_convolution(q.p);
  for (int64_t at = 0; at < static_cast<int64_t>(q.y.size()); ++at) {
    const int64_t o = at % kOutputs, place = at / kOutputs % q.places(), sample = at / kOutputs / q.places();
    double sum = q.bias[o];
    for (int64_t tap = 0; tap < 9; ++tap) {
      const float* numbers = q.read(sample, place, tap);
      for (int64_t c = 0; numbers != nullptr && c < kInputs; ++c) {
        sum += double{numbers[c]} * q.weight[(o * kInputs + c) * 9 + tap];
      }
    }
    const double bound = 1e-4 * q.largest_of_window(sample, place) + 1e-6 * std::abs(q.bias[o]);
    CHECK_FOR(std::isfinite(q.y[at]) == std::isfinite(sum), context);
    CHECK_FOR(!std::isfinite(sum) || std::abs(q.y[at] - sum) <= bound, context + ", place " + std::to_string(place));
  }
}

}  // namespace

TEST(conv_alike) {
  for (const Shape& s : kShapes) {
    for (const bool finite : {true, false}) {
      Problem q(s, finite);
      for (int64_t sample = 0; sample < s.samples; ++sample) {
        const WinogradAlike alike = fastlrp::cpu::winograd_alike(q.p, sample);
        check_alike(q, sample, alike, context(s));
        check_levels(q, sample, alike, context(s));
      }
      check_sums(q, context(s));
      CHECK_FOR(native::on_any_threads("alike " + std::to_string(finite) + context(s), q.y), context(s));
      // A sample alone is what it is in the batch.
      const int64_t size = q.places() * kOutputs;
      for (int64_t sample = 0; sample < s.samples; ++sample) {
        std::vector<float> alone = native::poisoned<float>(size);
        Winograd one = q.p;
        one.samples = 1, one.x += sample * s.height * s.width * kInputs, one.y = alone.data();
        fastlrp::cpu::winograd_convolution(one);
        CHECK_FOR(std::memcmp(alone.data(), q.y.data() + sample * size, size * sizeof(float)) == 0, context(s));
      }
    }
  }
}

// Windows that differ in one channel of one corner only; zeros of both signs are no difference.
TEST(conv_alike_but_for_one_number) {
  constexpr int64_t side = 12;
  Problem q({1, side, side, 1, 1}, true);
  std::fill(q.x.begin(), q.x.end(), 1.0f);
  for (int64_t at = 0; at < side * side; ++at) {
    q.x[at * kInputs + 3] = at % 3 == 0 ? -0.0f : 0.0f;
  }
  q.x[(4 * side + 7) * kInputs + 15] = std::nextafter(1.0f, 2.0f);
  q.x[(9 * side + 2) * kInputs] = -1.0f;
  const WinogradAlike alike = fastlrp::cpu::winograd_alike(q.p, 0);
  check_alike(q, 0, alike, "one number");
  check_levels(q, 0, alike, "one number");
  check_sums(q, "one number");
}

// In a few rows of the map, whichever thread looks at them.
TEST(conv_alike_but_for_dust) {
  constexpr int64_t height = 26, width = 5;
  for (const int64_t row : {1, 12, 24}) {
    Problem q({1, height, width, 1, 1}, true);
    std::fill(q.x.begin(), q.x.end(), 1.0f);
    for (int64_t i = 0; i < width * kInputs; i += 2) {
      q.x[row * width * kInputs + i] = 1e-16f * static_cast<float>(native::integer(1, 9));
    }
    check_alike(q, 0, fastlrp::cpu::winograd_alike(q.p, 0), "row " + std::to_string(row));
    check_sums(q, "row " + std::to_string(row));
  }
}

// Places whose prints are the same are compared all the same.
TEST(conv_alike_but_for_one_print) {
  constexpr int64_t inputs = 2 * fastlrp::cpu::kWinogradLanes, width = 6, other = width + 4;
  std::vector<float> x(3 * width * inputs, 1.0f);
  Winograd p{1, 3, width, inputs, 1, width - 2, kOutputs};
  p.x = x.data();
  const std::vector<uint32_t> odd = fastlrp::cpu::WinogradPlaces(p, 0).odd;
  const auto mixed = [](float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    return bits ^ bits >> 15;
  };
  uint32_t inverse = 1;  // of an odd number modulo 2^32
  for (int step = 0; step < 5; ++step) {
    inverse *= 2 - odd[inputs / 2] * inverse;
  }
  float *first = &x[other * inputs], *second = first + inputs / 2;
  do {
    *first = 1.0f + static_cast<float>(native::integer(1, 1 << 23)) * 0x1p-23f;
    uint32_t bits = mixed(1.0f) + (mixed(1.0f) - mixed(*first)) * odd[0] * inverse;
    bits ^= bits >> 15 ^ bits >> 30;
    std::memcpy(second, &bits, sizeof(bits));
  } while (!(std::abs(*second) > 0.1f && std::abs(*second) < 10.0f));
  const fastlrp::cpu::WinogradPlaces places(p, 0);
  CHECK(places.prints[other] == places.prints[0] && places.kept.empty());
  const std::vector<int32_t> found = fastlrp::cpu::winograd_alike(p, 0).first;
  CHECK((found == std::vector<int32_t>{0, 0, 2, 3}));
}

TEST(conv_dust) {
  CHECK(fastlrp::cpu::winograd_dust(1.0f) == 0x1p-45f);
  CHECK(fastlrp::cpu::winograd_dust(kInfinite) == 0.0f);
  CHECK(fastlrp::cpu::winograd_dust(std::numeric_limits<float>::max()) > 0.0f);
  CHECK(fastlrp::cpu::winograd_dust(0.0f) == 0.0f);
}
