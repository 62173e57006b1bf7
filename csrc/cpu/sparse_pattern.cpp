// Patterns of alive neurons, and what moves rows between patterns and dense tensors.

#include <algorithm>
#include <cstring>

#include "../common/parallel.h"
#include "sparse.h"
#include "sparse_kernel.h"
#include "sparse_window.h"

namespace fastlrp::cpu {
namespace {

constexpr int64_t kGrain = 64;  // positions; each is a few hundred channels

// f(position, its sample, its place in the sample) for all positions, in parallel.
template <class Body>
void over_positions(int64_t batch, int64_t spatial, Body&& body) {
  parallel_for(batch * spatial, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t q = begin; q < end; ++q) {
      body(q, q / spatial, q % spatial);
    }
  });
}

// Entry of a pattern at (position, channel) at or after `from`, or the first behind it.
int64_t advance(const Pattern& pattern, int64_t position, int64_t from, int32_t channel) {
  const int64_t end = pattern.offsets[position + 1];
  while (from < end && pattern.channels[from] < channel) {
    ++from;
  }
  return from;
}

}  // namespace

template <class T>
Entries sparse_pattern(const std::vector<Mask<T>>& masks, int64_t batch, int64_t channels, int64_t spatial) {
  const AliveChannels<T> alive_channels = sparse_kernel<T>().alive_channels;
  const bool plain = std::all_of(masks.begin(), masks.end(),
                                 [](const Mask<T>& m) { return m.index.data == nullptr && m.map.channel == 1; });
  Entries found;
  found.offsets.assign(static_cast<size_t>(batch * spatial + 1), 0);
  // Each range of positions lists its entries by itself; then they are put one after the other.
  const int64_t positions = batch * spatial, pieces = std::min<int64_t>(positions, 8 * thread_count());
  std::vector<std::vector<int32_t>> lists(static_cast<size_t>(pieces));
  const auto begin_of = [&](int64_t piece) { return positions * piece / std::max<int64_t>(1, pieces); };
  parallel_for(pieces, 1, [&](int64_t first, int64_t last) {
    std::vector<const T*> maps(masks.size());
    std::vector<T> gathered(static_cast<size_t>(channels) * masks.size());
    for (int64_t piece = first; piece < last; ++piece) {
      std::vector<int32_t>& list = lists[piece];
      list.resize(static_cast<size_t>((begin_of(piece + 1) - begin_of(piece)) * channels + kLanes));
      int64_t count = 0;
      for (int64_t q = begin_of(piece); q < begin_of(piece + 1); ++q) {
        const int64_t b = q / spatial, p = q % spatial;
        for (size_t m = 0; m < masks.size(); ++m) {
          const Mask<T>& mask = masks[m];
          maps[m] = mask.map.data + b * mask.map.batch + p * mask.map.position;
          if (!plain) {
            T* to = gathered.data() + m * channels;
            for (int64_t c = 0; c < channels; ++c) {
              to[c] = mask.map.at(b, c, mask.index.data == nullptr ? p : mask.index.at(b, c, p));
            }
            maps[m] = to;
          }
        }
        const int64_t here =
            alive_channels(maps.data(), static_cast<int64_t>(maps.size()), channels, list.data() + count);
        found.offsets[q + 1] = here;
        count += here;
      }
      list.resize(static_cast<size_t>(count));
    }
  });
  for (int64_t q = 0; q < positions; ++q) {
    found.offsets[q + 1] += found.offsets[q];
  }
  found.channels.resize(static_cast<size_t>(found.offsets.back()));
  parallel_for(pieces, 1, [&](int64_t first, int64_t last) {
    for (int64_t piece = first; piece < last; ++piece) {
      std::copy(lists[piece].begin(), lists[piece].end(), found.channels.begin() + found.offsets[begin_of(piece)]);
    }
  });
  return found;
}

template <class T>
void sparse_from_dense(const DenseMap<const T>& dense, const Pattern& pattern, T* values, int64_t stride) {
  over_positions(dense.batch, dense.spatial, [&](int64_t q, int64_t b, int64_t p) {
    const T* at = dense.data + b * dense.batch_stride + p * dense.position_stride;
    for (int64_t e = pattern.offsets[q]; e < pattern.offsets[q + 1]; ++e) {
      const T* from = at + pattern.channels[e] * dense.channel_stride;
      T* to = values + e * stride;
      for (int64_t k = 0; k < dense.targets; ++k) {
        to[k] = from[k * dense.target_stride];
      }
      for (int64_t k = dense.targets; k < stride; ++k) {
        to[k] = T(0);
      }
    }
  });
}

template <class T>
void sparse_to_dense(const Rows<T>& rows, int64_t channels, const DenseMap<T>& dense) {
  over_positions(dense.batch, dense.spatial, [&](int64_t q, int64_t b, int64_t p) {
    T* at = dense.data + b * dense.batch_stride + p * dense.position_stride;
    int64_t e = rows.pattern.offsets[q];
    const int64_t end = rows.pattern.offsets[q + 1];
    for (int64_t c = 0; c < channels; ++c) {
      T* to = at + c * dense.channel_stride;
      if (e < end && rows.pattern.channels[e] == c) {
        const T* from = rows.row(e++);
        for (int64_t k = 0; k < dense.targets; ++k) {
          to[k * dense.target_stride] = from[k];
        }
      } else {
        for (int64_t k = 0; k < dense.targets; ++k) {
          to[k * dense.target_stride] = T(0);
        }
      }
    }
  });
}

template <class T>
void sparse_sum(const std::vector<Summand<T>>& sources, const Pattern& pattern, int64_t batch, int64_t targets,
                T* values, int64_t stride) {
  const int64_t spatial = batch == 0 ? 0 : pattern.positions / batch;
  over_positions(batch, spatial, [&](int64_t q, int64_t b, int64_t p) {
    bool first = true;
    for (const Summand<T>& summand : sources) {
      const Pattern& theirs = summand.source.pattern;
      int64_t s = theirs.offsets[q];
      for (int64_t e = pattern.offsets[q]; e < pattern.offsets[q + 1]; ++e) {
        const int32_t c = pattern.channels[e];
        T* to = values + e * stride;
        s = advance(theirs, q, s, c);
        if (s < theirs.offsets[q + 1] && theirs.channels[s] == c) {
          const T* from = summand.source.row(s);
          const T factor = summand.factor.data == nullptr ? T(1) : summand.factor.at(b, c, p);
          if (first) {
            for (int64_t k = 0; k < targets; ++k) {
              to[k] = factor * from[k];
            }
          } else {
            for (int64_t k = 0; k < targets; ++k) {
              to[k] += factor * from[k];
            }
          }
        } else if (first) {
          std::memset(to, 0, targets * sizeof(T));
        }
      }
      first = false;
    }
  });
}

Winners sparse_winners(const Map<int64_t>& index, const Pattern& pooled, const Window& window, int64_t batch) {
  const Window& w = window;
  const int64_t inputs = w.in[0] * w.in[1] * w.in[2], outputs = w.out[0] * w.out[1] * w.out[2];
  const Reach reach[3] = {{w, 0}, {w, 1}, {w, 2}};
  std::vector<int32_t> place(static_cast<size_t>(pooled.offsets[pooled.positions]));  // the input that each entry names
  over_positions(batch, outputs, [&](int64_t q, int64_t b, int64_t p) {
    for (int64_t e = pooled.offsets[q]; e < pooled.offsets[q + 1]; ++e) {
      place[e] = static_cast<int32_t>(index.at(b, pooled.channels[e], p));
    }
  });
  struct Won {
    int32_t channel;
    int64_t row;
  };
  // f(first entry, last entry) for the windows that an input position is in, in the order of their outputs, which is
  // that of taps from the last to the first.
  const auto over_windows = [&](int64_t b, int64_t p, auto&& f) {
    const int64_t at[3] = {p / (w.in[1] * w.in[2]), p / w.in[2] % w.in[1], p % w.in[2]};
    for (int64_t ta = w.taps[0] - 1; ta >= 0; --ta) {
      const int64_t a = reach[0].tap(ta)[at[0]];
      for (int64_t ty = w.taps[1] - 1; a >= 0 && ty >= 0; --ty) {
        const int64_t y = reach[1].tap(ty)[at[1]];
        for (int64_t tx = w.taps[2] - 1; y >= 0 && tx >= 0; --tx) {
          const int64_t x = reach[2].tap(tx)[at[2]];
          if (x >= 0) {
            const int64_t q = b * outputs + (a * w.out[1] + y) * w.out[2] + x;
            f(pooled.offsets[q], pooled.offsets[q + 1]);
          }
        }
      }
    }
  };
  // What an input position won, by channel and then by row.
  const auto list = [&](int64_t b, int64_t p, std::vector<Won>& won) {
    won.clear();
    bool sorted = true;
    over_windows(b, p, [&](int64_t begin, int64_t end) {
      for (int64_t e = begin; e < end; ++e) {
        if (place[e] == p) {
          sorted = sorted && (won.empty() || won.back().channel < pooled.channels[e]);
          won.push_back({pooled.channels[e], e});
        }
      }
    });
    if (!sorted) {
      std::sort(won.begin(), won.end(), [](const Won& a, const Won& b) {
        return a.channel != b.channel ? a.channel < b.channel : a.row < b.row;
      });
    }
  };
  Winners found;
  std::vector<int64_t> rows(static_cast<size_t>(batch * inputs + 1), 0);
  found.entries.offsets.assign(static_cast<size_t>(batch * inputs + 1), 0);
  // Windows that don't overlap have one winner per input and channel: nothing to tell apart.
  const bool overlap = w.taps[0] > w.stride[0] || w.taps[1] > w.stride[1] || w.taps[2] > w.stride[2] ||
                       w.dilation[0] * w.dilation[1] * w.dilation[2] > 1;
  const auto over_lists = [&](auto&& body) {
    parallel_for(batch * inputs, kGrain, [&](int64_t begin, int64_t end) {
      std::vector<Won> won;
      for (int64_t q = begin; q < end; ++q) {
        list(q / inputs, q % inputs, won);
        body(q, won);
      }
    });
  };
  over_positions(batch, inputs, [&](int64_t q, int64_t b, int64_t p) {
    if (!overlap) {
      int64_t count = 0;
      over_windows(b, p, [&](int64_t begin, int64_t end) {
        for (int64_t e = begin; e < end; ++e) {
          count += place[e] == static_cast<int32_t>(p);
        }
      });
      found.entries.offsets[q + 1] = rows[q + 1] = count;
    }
  });
  if (overlap) {
    over_lists([&](int64_t q, const std::vector<Won>& won) {
      int64_t distinct = static_cast<int64_t>(won.size());
      for (size_t i = 1; i < won.size(); ++i) {
        distinct -= won[i].channel == won[i - 1].channel;
      }
      found.entries.offsets[q + 1] = distinct;
      rows[q + 1] = static_cast<int64_t>(won.size());
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
  over_lists([&](int64_t q, const std::vector<Won>& won) {
    int64_t entry = found.entries.offsets[q] - 1;
    for (size_t i = 0; i < won.size(); ++i) {
      if (i == 0 || won[i].channel != won[i - 1].channel) {
        ++entry;
        found.entries.channels[entry] = won[i].channel;
        found.starts[entry] = rows[q] + static_cast<int64_t>(i);
      }
      found.rows[rows[q] + static_cast<int64_t>(i)] = won[i].row;
    }
  });
  return found;
}

template <class T>
void sparse_gather_sum(const Rows<T>& source, const int64_t* starts, const int64_t* rows, int64_t entries,
                       int64_t targets, T* values, int64_t stride) {
  parallel_for(entries, kGrain, [&](int64_t first, int64_t last) {
    for (int64_t e = first; e < last; ++e) {
      T* to = values + e * stride;
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

#define FASTLRP_INSTANTIATE(T)                                                                                \
  template Entries sparse_pattern<T>(const std::vector<Mask<T>>&, int64_t, int64_t, int64_t);                 \
  template void sparse_from_dense<T>(const DenseMap<const T>&, const Pattern&, T*, int64_t);                  \
  template void sparse_to_dense<T>(const Rows<T>&, int64_t, const DenseMap<T>&);                              \
  template void sparse_sum<T>(const std::vector<Summand<T>>&, const Pattern&, int64_t, int64_t, T*, int64_t); \
  template void sparse_gather_sum<T>(const Rows<T>&, const int64_t*, const int64_t*, int64_t, int64_t, T*, int64_t)

FASTLRP_INSTANTIATE(float);
FASTLRP_INSTANTIATE(double);

}  // namespace fastlrp::cpu
