// csrc/common/pattern.h, on which the CUDA kernels rely, against loops.
#include "../../csrc/common/pattern.h"

#include "../../csrc/common/axis.h"
#include "../../csrc/common/pattern_check.h"
#include "../../csrc/cpu/sparse.h"
#include "check.h"

namespace {

using namespace fastlrp;

// Ascending lists of channels below `most`, some of them empty, in memory of exactly their size.
struct Lists {
  std::vector<int64_t> offsets{0};
  std::vector<int32_t> channels;

  Lists(int64_t positions, int32_t most) {
    for (int64_t q = 0; q < positions; ++q) {
      const int64_t tenths = native::integer(0, 2) == 0 ? 0 : native::integer(0, 10);
      for (int32_t c = 0; c < most; ++c) {
        if (native::integer(1, 10) <= tenths) {
          channels.push_back(c);
        }
      }
      offsets.push_back(static_cast<int64_t>(channels.size()));
    }
    channels.shrink_to_fit();
  }
};

TEST(channels_are_found_in_their_list) {
  for (const int64_t positions : {1, 2, 5, 17, 64}) {
    for (const int32_t most : {1, 2, 3, 31, 64, 131}) {
      const Lists lists(positions, most);
      for (int64_t q = 0; q < positions; ++q) {
        const int64_t begin = lists.offsets[q], end = lists.offsets[q + 1];
        for (int32_t c = -1; c <= most; ++c) {
          int64_t first = begin;
          while (first < end && lists.channels[first] < c) {
            ++first;
          }
          CHECK(first_not_below(lists.channels.data(), begin, end, c) == first);
          const bool there = first < end && lists.channels[first] == c;
          CHECK(entry_of(lists.channels.data(), begin, end, c) == (there ? first : -1));
        }
      }
    }
  }
}

TEST(positions_of_entries_skip_empty_ones) {
  for (const int64_t positions : {1, 2, 3, 8, 31, 200}) {
    const Lists lists(positions, 7);
    for (int64_t q = 0; q < positions; ++q) {
      for (int64_t e = lists.offsets[q]; e < lists.offsets[q + 1]; ++e) {
        CHECK(position_of(lists.offsets.data(), positions, e) == q);
      }
    }
  }
}

// What overlaps() denies must never happen; with dilation it may say so in vain.
TEST(windows_overlap_where_an_input_is_in_two) {
  for (int64_t taps = 1; taps <= 4; ++taps) {
    for (int64_t stride = 1; stride <= 5; ++stride) {
      for (int64_t dilation = 1; dilation <= 2; ++dilation) {
        for (int axis = 0; axis < 3; ++axis) {
          cpu::Window w{{1, 1, 1}, {1, 1, 1}, {1, 1, 1}, {1, 1, 1}, {0, 0, 0}, {1, 1, 1}, false};
          w.in[axis] = 40, w.out[axis] = 6, w.taps[axis] = taps, w.stride[axis] = stride, w.dilation[axis] = dilation;
          const Axis line(40, 6, taps, stride, 0, dilation);
          int32_t most = 0;
          for (int64_t i = 0; i < line.inputs; ++i) {
            most = std::max(most, line.outputs_of(i).count);
          }
          CHECK(overlaps(w) ? dilation > 1 || most > 1 : most <= 1);
        }
      }
    }
  }
}

// One number changed: a fault is found where a loop over all entries finds one, and nothing else is called a fault.
TEST(patterns_that_point_outside_are_found) {
  for (int repeat = 0; repeat < 300; ++repeat) {
    const int64_t positions = native::integer(0, 40);
    const int32_t most = static_cast<int32_t>(native::integer(1, 40));
    Lists lists(positions, most);
    const int64_t entries = static_cast<int64_t>(lists.channels.size());
    const auto fault = [&] {
      return pattern_fault({lists.offsets.data(), lists.channels.data(), positions}, entries, most);
    };
    CHECK(fault().empty());
    const bool of_offsets = entries == 0 || native::integer(0, 1) == 0;
    if (of_offsets) {
      lists.offsets[native::integer(0, positions)] += native::integer(-3, 3);
    } else {
      lists.channels[native::integer(0, entries - 1)] += static_cast<int32_t>(native::integer(-3, 3));
    }
    bool sound = lists.offsets.front() == 0 && lists.offsets.back() == entries;
    for (int64_t q = 0; sound && q < positions; ++q) {
      sound = lists.offsets[q] <= lists.offsets[q + 1];
    }
    for (int64_t q = 0; sound && q < positions; ++q) {
      for (int64_t e = lists.offsets[q]; e < lists.offsets[q + 1]; ++e) {
        const int32_t c = lists.channels[e];
        sound = sound && c >= 0 && c < most && (e == lists.offsets[q] || c > lists.channels[e - 1]);
      }
    }
    CHECK_FOR(fault().empty() == sound, fault());
  }
}

TEST(rows_that_point_outside_are_found) {
  for (const int64_t wrong : {int64_t{-1}, int64_t{7}, INT64_MAX, INT64_MIN}) {
    for (int64_t count = 1; count < 40; ++count) {
      std::vector<int64_t> rows(count, 6);
      CHECK(rows_fault(rows.data(), count, 7).empty());
      rows[native::integer(0, count - 1)] = wrong;
      CHECK(!rows_fault(rows.data(), count, 7).empty());
      CHECK(!rows_fault(rows.data(), count, 0).empty());
    }
  }
  CHECK(rows_fault(nullptr, 0, 0).empty());
}

}  // namespace
