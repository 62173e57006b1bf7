// csrc/common/windows: every entry of every window, on both sides, against the definition.
#include "../../csrc/common/windows.h"

#include "check.h"

namespace {

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
