// csrc/common: divisor, axis, windows and maps. Every entry of every window, on both sides, against the definition.
#include "../../csrc/common/windows.h"

#include <stdexcept>

#include "../../csrc/common/maps.h"
#include "check.h"

namespace {

using fastlrp::Axis;
using fastlrp::Windows;

// holds[o][i]: whether window o holds input i.
using Membership = std::vector<std::vector<bool>>;

void check_sides(const Windows& w, const Membership& holds, const std::string& context) {
  for (int64_t o = 0; o < w.outputs; ++o) {
    std::vector<bool> seen(w.inputs);
    for (int64_t j = 0; j < w.taps[o]; ++j) {
      seen.at(w.begin[o] + j * w.dilation) = true;
    }
    CHECK_FOR(seen == holds[o], context);
    CHECK_FOR(w.taps[o] <= w.inputs, context);
  }
  for (int64_t i = 0; i < w.inputs; ++i) {
    std::vector<int64_t> expected, got;
    for (int64_t o = 0; o < w.outputs; ++o) {
      if (holds[o][i]) {
        expected.push_back(o);
      }
    }
    for (int64_t j = 0; j < w.count[i]; ++j) {
      got.push_back(w.first[i] + j * w.step);
    }
    CHECK_FOR(got == expected, context);
  }
}

// Tap by tap, as convolutions go: what one side finds on the other.
void check_taps(const Axis& axis, const std::string& context) {
  for (int64_t tap = 0; tap < axis.taps; ++tap) {
    for (int64_t i = 0; i < axis.inputs; ++i) {
      int64_t expected = -1;
      for (int64_t o = 0; o < axis.outputs; ++o) {
        const bool there = o * axis.stride - axis.padding + tap * axis.dilation == i;
        expected = there ? o : expected;
        CHECK_FOR((axis.input_at(o, tap) == i) == there, context);
      }
      CHECK_FOR(axis.output_at(i, tap) == expected, context);
    }
  }
}

// Parts cover every input once, and hold their window where windows don't overlap.
void check_parts(const Axis& axis, const Membership& holds, const std::string& context) {
  int64_t covered = 0;
  for (int64_t o = 0; o < axis.outputs; ++o) {
    const fastlrp::Span part = axis.part_of(o);
    CHECK_FOR(part.step == 1 && (part.count == 0 || part.first == covered), context);
    covered += part.count;
    int64_t first = o * axis.stride - axis.padding;
    while (first < 0) {
      first += axis.dilation;
    }
    CHECK_FOR(axis.first_of(o) == first, context);
    for (int64_t i = 0; i < axis.inputs && axis.dilation * (axis.taps - 1) < axis.stride; ++i) {
      CHECK_FOR(!holds[o][i] || (i >= part.first && i < part.first + part.count), context);
    }
  }
  CHECK_FOR(covered == (axis.outputs == 0 ? 0 : axis.inputs), context);
}

}  // namespace

TEST(pool_windows_hold_what_the_definition_says) {
  for (int round = 0; round < 2000; ++round) {
    const int64_t inputs = native::integer(0, 23), outputs = native::integer(0, 12), kernel = native::integer(1, 9);
    const int64_t stride = native::integer(1, 7), padding = native::integer(0, 9), dilation = native::integer(1, 5);
    Membership holds(outputs, std::vector<bool>(inputs));
    for (int64_t o = 0; o < outputs; ++o) {
      for (int64_t j = 0; j < kernel; ++j) {
        const int64_t i = o * stride - padding + j * dilation;
        if (i >= 0 && i < inputs) {
          holds[o][i] = true;
        }
      }
    }
    const std::string context = "inputs " + std::to_string(inputs) + " outputs " + std::to_string(outputs) +
                                " kernel " + std::to_string(kernel) + " stride " + std::to_string(stride) +
                                " padding " + std::to_string(padding) + " dilation " + std::to_string(dilation);
    check_sides(fastlrp::pool_windows(inputs, outputs, kernel, stride, padding, dilation), holds, context);
    check_taps(Axis(inputs, outputs, kernel, stride, padding, dilation), context);
    check_parts(Axis(inputs, outputs, kernel, stride, padding, dilation), holds, context);
  }
}

TEST(adaptive_windows_hold_what_the_definition_says) {
  for (int64_t inputs = 0; inputs < 18; ++inputs) {
    for (int64_t outputs = 0; outputs < 18; ++outputs) {
      const Windows w = fastlrp::adaptive_windows(inputs, outputs);
      Membership holds(outputs, std::vector<bool>(inputs));
      for (int64_t o = 0; o < outputs; ++o) {
        int64_t held = 0;
        for (int64_t i = 0; i < inputs; ++i) {
          holds[o][i] = (i + 1) * outputs > o * inputs && i * outputs < (o + 1) * inputs;
          held += holds[o][i];
        }
        CHECK(w.weight[o] == (held == 0 ? 0.0 : 1.0 / static_cast<double>(held)));
      }
      check_sides(w, holds, std::to_string(inputs) + " to " + std::to_string(outputs));
    }
  }
}

TEST(average_windows_count_as_pytorch_does) {
  // Kernel 3, stride 2, padding 1, ceil_mode: the last of four windows hangs over the padded edge.
  const Windows padded = fastlrp::average_windows(6, 4, 3, 2, 1, true);
  CHECK((padded.weight == std::vector<double>{1.0 / 3, 1.0 / 3, 1.0 / 3, 1.0 / 2}));
  const Windows inside = fastlrp::average_windows(6, 4, 3, 2, 1, false);
  CHECK((inside.weight == std::vector<double>{1.0 / 2, 1.0 / 3, 1.0 / 3, 1.0 / 1}));
}

TEST(numbers_just_below_the_limit_do_not_overflow) {
  const int64_t limit = std::numeric_limits<int32_t>::max();
  const Windows w = fastlrp::pool_windows(3, 2, limit, limit, limit, limit);
  CHECK((w.taps == std::vector<int32_t>{1, 1}));
  CHECK((w.begin == std::vector<int32_t>{0, 0}));
  CHECK(fastlrp::average_windows(3, 2, limit, limit, limit, true).taps.size() == 2);
}

TEST(numbers_beyond_the_limit_are_refused) {
  const int64_t beyond = int64_t{1} << 31;
  for (int argument = 0; argument < 6; ++argument) {
    int64_t n[6] = {3, 2, 1, 1, 0, 1};
    n[argument] = beyond;
    bool thrown = false;
    try {
      const Axis axis(n[0], n[1], n[2], n[3], n[4], n[5]);
    } catch (const std::invalid_argument& error) {
      thrown = std::string(error.what()).find("[0, 2^31), got 2147483648") != std::string::npos;
    }
    CHECK(thrown);
  }
}

TEST(divisors_divide) {
  const auto check = [](uint32_t n, uint32_t d) {
    CHECK_FOR(fastlrp::Divisor(d).divide(n) == n / d, std::to_string(n) + " / " + std::to_string(d));
  };
  for (int round = 0; round < 200000; ++round) {
    const uint32_t d = std::max<uint32_t>(1, static_cast<uint32_t>(native::random()) >> native::integer(1, 31));
    const uint32_t n = static_cast<uint32_t>(native::random()) >> native::integer(0, 31);
    check(n, d);
    check(n / d * d, d);
    check(n / d * d - 1, d);  // the largest of all where n < d
    const uint64_t wide = native::random() >> native::integer(0, 63);
    CHECK(fastlrp::Divisor(d).divide_wide(wide) == wide / d);
  }
}

TEST(maps_are_numbered_in_the_order_of_memory) {
  for (int round = 0; round < 300; ++round) {
    const bool last = native::integer(0, 1);
    const int64_t width = last ? native::integer(1, 4) : 1, channels = width * native::integer(1, 5);
    const int64_t size[3] = {native::integer(1, 4), native::integer(1, 5), native::integer(1, 6)};
    const fastlrp::MapOrder order(channels, size[0], size[1], size[2], width, last);
    const int64_t positions = size[0] * size[1] * size[2];
    for (int64_t item = 0; item < channels * positions / width; ++item) {
      const fastlrp::Spot spot = order.at(static_cast<uint32_t>(item));
      CHECK(spot.z >= 0 && spot.z < size[0] && spot.y >= 0 && spot.y < size[1] && spot.x >= 0 && spot.x < size[2]);
      const int64_t position = (spot.z * size[1] + spot.y) * size[2] + spot.x;
      const int64_t element = last ? position * channels + spot.channel : spot.channel * positions + position;
      CHECK(element == item * width);
      CHECK(fastlrp::channel_of(spot.channel, channels, positions, last).at(static_cast<uint32_t>(position)) ==
            element);
    }
    int64_t visits = 0, before = -1;
    const auto visit = [&](uint32_t position, int32_t z, int32_t y, int32_t x) {
      CHECK((z * size[1] + y) * size[2] + x == position && static_cast<int64_t>(position) > before);
      before = position;
      ++visits;
    };
    fastlrp::over_places({0, static_cast<int32_t>(size[0]), 1}, {0, static_cast<int32_t>((size[1] + 1) / 2), 2},
                         {1, static_cast<int32_t>((size[2] + 1) / 3), 3}, static_cast<int32_t>(size[1]),
                         static_cast<int32_t>(size[2]), visit);
    CHECK(visits == size[0] * ((size[1] + 1) / 2) * ((size[2] + 1) / 3));
  }
}
