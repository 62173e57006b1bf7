// The patterns of pools: which entries of a pool's input take which of its output's, and the sums of their rows.

#include <algorithm>
#include <atomic>
#include <cstring>

#include "../common/axis.h"
#include "../common/pattern.h"
#include "sparse.h"
#include "sparse_positions.h"
#include "sparse_window.h"

namespace fastlrp::cpu {
namespace {

// Outputs that each input coordinate is joined with along an axis, ascending.
struct Joined {
  std::vector<int32_t> outputs;
  std::vector<int64_t> begin{0};

  Joined(const Window& w, int axis) {
    const Axis line(w.in[axis], w.out[axis], w.taps[axis], w.stride[axis], w.padding[axis], w.dilation[axis]);
    for (int64_t i = 0; i < w.in[axis]; ++i) {
      const Span span = line.outputs_of(i);
      for (int32_t j = 0; j < span.count; ++j) {
        outputs.push_back(span.first + j * span.step);
      }
      begin.push_back(static_cast<int64_t>(outputs.size()));
    }
  }
};

// Entries of a pool's input, each with the entries of its output that it takes from. `pick(q, p, begin, end, take)`
// calls take(entry) for those of one output position that input position q, p of its sample, takes from.
template <class Pick>
Gathered gather(const Pattern& pooled, const Window& w, int64_t batch, Pick&& pick) {
  const int64_t inputs = w.inputs(), outputs = w.outputs();
  const Joined joined[3] = {{w, 0}, {w, 1}, {w, 2}};
  struct Taken {
    int32_t channel;
    int64_t row;
  };
  // In the order of outputs.
  const auto over_taken = [&](int64_t q, auto&& take) {
    const int64_t b = q / inputs, p = q % inputs;
    const int64_t at[3] = {p / (w.in[1] * w.in[2]), p / w.in[2] % w.in[1], p % w.in[2]};
    for (int64_t i = joined[0].begin[at[0]]; i < joined[0].begin[at[0] + 1]; ++i) {
      for (int64_t j = joined[1].begin[at[1]]; j < joined[1].begin[at[1] + 1]; ++j) {
        for (int64_t k = joined[2].begin[at[2]]; k < joined[2].begin[at[2] + 1]; ++k) {
          const int64_t output =
              b * outputs + (joined[0].outputs[i] * w.out[1] + joined[1].outputs[j]) * w.out[2] + joined[2].outputs[k];
          pick(q, p, pooled.offsets[output], pooled.offsets[output + 1], take);
        }
      }
    }
  };
  // By channel and then by row.
  const auto list = [&](int64_t q, std::vector<Taken>& taken) {
    taken.clear();
    bool sorted = true;
    over_taken(q, [&](int64_t e) {
      sorted = sorted && (taken.empty() || taken.back().channel < pooled.channels[e]);
      taken.push_back({pooled.channels[e], e});
    });
    if (!sorted) {
      std::sort(taken.begin(), taken.end(), [](const Taken& a, const Taken& b) {
        return a.channel != b.channel ? a.channel < b.channel : a.row < b.row;
      });
    }
  };
  Gathered found;
  std::vector<int64_t> rows(static_cast<size_t>(batch * inputs + 1), 0);
  found.entries.offsets.assign(static_cast<size_t>(batch * inputs + 1), 0);
  const auto over_lists = [&](auto&& body) {
    parallel_for(batch * inputs, kGrain, [&](int64_t begin, int64_t end) {
      std::vector<Taken> taken;
      for (int64_t q = begin; q < end; ++q) {
        list(q, taken);
        body(q, taken);
      }
    });
  };
  if (overlaps(w)) {
    over_lists([&](int64_t q, const std::vector<Taken>& taken) {
      int64_t distinct = static_cast<int64_t>(taken.size());
      for (size_t i = 1; i < taken.size(); ++i) {
        distinct -= taken[i].channel == taken[i - 1].channel;
      }
      found.entries.offsets[q + 1] = distinct;
      rows[q + 1] = static_cast<int64_t>(taken.size());
    });
  } else {
    // No channel comes twice.
    over_positions(batch, inputs, [&](int64_t q, int64_t, int64_t) {
      int64_t count = 0;
      over_taken(q, [&](int64_t) { ++count; });
      found.entries.offsets[q + 1] = rows[q + 1] = count;
    });
  }
  for (int64_t q = 0; q < batch * inputs; ++q) {
    found.entries.offsets[q + 1] += found.entries.offsets[q];
    rows[q + 1] += rows[q];
  }
  found.entries.channels.resize(static_cast<size_t>(found.entries.offsets.back()));
  found.starts.resize(static_cast<size_t>(found.entries.offsets.back() + 1));
  found.rows.resize(static_cast<size_t>(rows.back()));
  found.starts.back() = rows.back();
  over_lists([&](int64_t q, const std::vector<Taken>& taken) {
    int64_t entry = found.entries.offsets[q] - 1;
    for (size_t i = 0; i < taken.size(); ++i) {
      if (i == 0 || taken[i].channel != taken[i - 1].channel) {
        ++entry;
        found.entries.channels[entry] = taken[i].channel;
        found.starts[entry] = rows[q] + static_cast<int64_t>(i);
      }
      found.rows[rows[q] + static_cast<int64_t>(i)] = taken[i].row;
    }
  });
  return found;
}

// f(first, last) for what the positions of one row of a window's inputs are in the sample; no dilation.
template <class Body>
void over_window_rows(const Window& w, int64_t output, Body&& body) {
  const int64_t at[3] = {output / (w.out[1] * w.out[2]), output / w.out[2] % w.out[1], output % w.out[2]};
  Range in[3];
  for (int axis = 0; axis < 3; ++axis) {
    const int64_t first = at[axis] * w.stride[axis] - w.padding[axis];
    in[axis] = {std::max<int64_t>(0, first), std::min(w.in[axis], first + w.taps[axis])};
  }
  for (int64_t a = in[0].begin; a < in[0].end; ++a) {
    for (int64_t y = in[1].begin; y < in[1].end && in[2].size() > 0; ++y) {
      const int64_t row = (a * w.in[1] + y) * w.in[2];
      body(row + in[2].begin, row + in[2].end);
    }
  }
}

// Behind the largest channel of any position.
int32_t channels_of(const Pattern& pattern) {
  int32_t channels = 0;
  for (int64_t q = 0; q < pattern.positions; ++q) {
    if (pattern.offsets[q + 1] > pattern.offsets[q]) {
      channels = std::max(channels, pattern.channels[pattern.offsets[q + 1] - 1] + 1);
    }
  }
  return channels;
}

// sparse_windows where each wanted entry is in one window at most.
Gathered rows_of_tiles(const Pattern& wanted, const Pattern& pooled, const Window& w, int64_t batch) {
  const int64_t inputs = w.inputs(), outputs = w.outputs();
  const int64_t count = wanted.offsets[wanted.positions];
  const size_t channels = static_cast<size_t>(std::max(channels_of(wanted), channels_of(pooled)));
  Gathered found;
  found.rows.assign(static_cast<size_t>(count), -1);
  std::atomic<int64_t> placed{0};
  parallel_for(batch * outputs, kGrain, [&](int64_t first, int64_t last) {
    std::vector<int64_t> row(channels, -1);  // of each channel in this window
    int64_t here = 0;
    for (int64_t o = first; o < last; ++o) {
      for (int64_t e = pooled.offsets[o]; e < pooled.offsets[o + 1]; ++e) {
        row[pooled.channels[e]] = e;
      }
      const int64_t start = o / outputs * inputs;
      over_window_rows(w, o % outputs, [&](int64_t begin, int64_t end) {
        for (int64_t e = wanted.offsets[start + begin]; e < wanted.offsets[start + end]; ++e) {
          found.rows[e] = row[wanted.channels[e]];
          here += found.rows[e] >= 0;
        }
      });
      for (int64_t e = pooled.offsets[o]; e < pooled.offsets[o + 1]; ++e) {
        row[pooled.channels[e]] = -1;
      }
    }
    placed.fetch_add(here, std::memory_order_relaxed);
  });
  found.everything = placed == count;
  if (found.everything) {
    return found;
  }
  found.entries.offsets.assign(wanted.offsets, wanted.offsets + wanted.positions + 1);
  found.entries.channels.resize(static_cast<size_t>(count));
  int64_t kept = 0;
  for (int64_t q = 0; q < wanted.positions; ++q) {
    for (int64_t e = wanted.offsets[q]; e < wanted.offsets[q + 1]; ++e) {
      found.entries.channels[kept] = wanted.channels[e];
      found.rows[kept] = found.rows[e];
      kept += found.rows[e] >= 0;
    }
    found.entries.offsets[q + 1] = kept;
  }
  found.entries.channels.resize(static_cast<size_t>(kept));
  found.rows.resize(static_cast<size_t>(kept));
  return found;
}

}  // namespace

Gathered sparse_winners(const Map<int64_t>& index, const Pattern& pooled, const Window& window, int64_t batch) {
  const int64_t inputs = window.inputs(), outputs = window.outputs();
  std::vector<int32_t> place(static_cast<size_t>(pooled.offsets[pooled.positions]));  // the input that each entry names
  over_positions(batch, outputs, [&](int64_t q, int64_t b, int64_t p) {
    for (int64_t e = pooled.offsets[q]; e < pooled.offsets[q + 1]; ++e) {
      const int64_t named = index.at(b, pooled.channels[e], p);
      place[e] = named >= 0 && named < inputs ? static_cast<int32_t>(named) : -1;
    }
  });
  return gather(pooled, window, batch, [&](int64_t, int64_t p, int64_t begin, int64_t end, auto&& take) {
    for (int64_t e = begin; e < end; ++e) {
      if (place[e] == static_cast<int32_t>(p)) {
        take(e);
      }
    }
  });
}

Gathered sparse_windows(const Pattern& wanted, const Pattern& pooled, const Window& window, int64_t batch) {
  if (!overlaps(window)) {
    return rows_of_tiles(wanted, pooled, window, batch);
  }
  return gather(pooled, window, batch, [&](int64_t q, int64_t, int64_t begin, int64_t end, auto&& take) {
    const int64_t last = wanted.offsets[q + 1];
    for (int64_t e = begin, want = wanted.offsets[q]; e < end && want < last;) {
      const int32_t here = pooled.channels[e], there = wanted.channels[want];
      if (here == there) {
        take(e);
      }
      e += here <= there;
      want += there <= here;
    }
  });
}

template <class T>
void sparse_gather_sum(const Rows<T>& source, const int64_t* starts, const int64_t* rows, int64_t entries,
                       int64_t targets, T* values, int64_t stride) {
  parallel_for(entries, kGrain, [&](int64_t first, int64_t last) {
    for (int64_t e = first; e < last; ++e) {
      T* to = values + e * stride;
      if (starts[e] == starts[e + 1]) {
        std::memset(to, 0, targets * sizeof(T));
      }
      for (int64_t i = starts[e]; i < starts[e + 1]; ++i) {
        const T* from = source.row(rows[i]);
        if (i == starts[e]) {
          std::memcpy(to, from, targets * sizeof(T));
        } else {
          for (int64_t k = 0; k < targets; ++k) {
            to[k] += from[k];
          }
        }
      }
    }
  });
}

#define FASTLRP_INSTANTIATE(T) \
  template void sparse_gather_sum<T>(const Rows<T>&, const int64_t*, const int64_t*, int64_t, int64_t, T*, int64_t)

FASTLRP_INSTANTIATE(float);
FASTLRP_INSTANTIATE(double);

}  // namespace fastlrp::cpu
