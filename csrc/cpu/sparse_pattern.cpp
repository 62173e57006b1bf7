// Patterns of alive neurons, and what moves rows between patterns and dense tensors.

#include <algorithm>
#include <cstring>

#include "../common/parallel.h"
#include "sparse.h"

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
void sparse_count(const Map<T>& map, int64_t batch, int64_t channels, int64_t spatial, int64_t* counts) {
  over_positions(batch, spatial, [&](int64_t q, int64_t b, int64_t p) {
    const T* at = map.data + b * map.batch + p * map.position;
    int64_t count = 0;
    if (map.channel == 1) {
      for (int64_t c = 0; c < channels; ++c) {
        count += at[c] != T(0);
      }
    } else {
      for (int64_t c = 0; c < channels; ++c) {
        count += at[c * map.channel] != T(0);
      }
    }
    counts[q] = count;
  });
}

template <class T>
void sparse_fill(const Map<T>& map, int64_t batch, int64_t channels, int64_t spatial, const int64_t* offsets,
                 int32_t* out) {
  over_positions(batch, spatial, [&](int64_t q, int64_t b, int64_t p) {
    const T* at = map.data + b * map.batch + p * map.position;
    int32_t* to = out + offsets[q];
    const int32_t* end = out + offsets[q + 1];
    for (int64_t c = 0; c < channels && to < end; ++c) {
      *to = static_cast<int32_t>(c);
      to += at[c * map.channel] != T(0);
    }
  });
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

Winners sparse_winners(const int64_t* index, int64_t index_batch, int64_t index_channel, int64_t index_position,
                       const Pattern& pooled, int64_t batch, int64_t inputs) {
  const int64_t spatial = batch == 0 ? 0 : pooled.positions / batch, entries = pooled.offsets[pooled.positions];
  struct Won {
    int32_t channel;
    int64_t row;
  };
  // Bucket by input position, then order each bucket by channel.
  std::vector<int64_t> place(static_cast<size_t>(entries)), begin(static_cast<size_t>(batch * inputs + 1), 0);
  over_positions(batch, spatial, [&](int64_t q, int64_t b, int64_t p) {
    for (int64_t e = pooled.offsets[q]; e < pooled.offsets[q + 1]; ++e) {
      place[e] = b * inputs + index[b * index_batch + pooled.channels[e] * index_channel + p * index_position];
    }
  });
  for (const int64_t to : place) {
    ++begin[to + 1];
  }
  for (size_t i = 1; i < begin.size(); ++i) {
    begin[i] += begin[i - 1];
  }
  std::vector<Won> won(static_cast<size_t>(entries));
  std::vector<int64_t> next(begin.begin(), begin.end() - 1);
  for (int64_t e = 0; e < entries; ++e) {
    won[next[place[e]]++] = {pooled.channels[e], e};
  }
  Winners found;
  found.offsets.assign(static_cast<size_t>(batch * inputs + 1), 0);
  over_positions(batch, inputs, [&](int64_t q, int64_t, int64_t) {
    std::sort(won.begin() + begin[q], won.begin() + begin[q + 1], [](const Won& a, const Won& b) {
      return a.channel != b.channel ? a.channel < b.channel : a.row < b.row;
    });
    int64_t distinct = 0;
    for (int64_t i = begin[q]; i < begin[q + 1]; ++i) {
      distinct += i == begin[q] || won[i].channel != won[i - 1].channel;
    }
    found.offsets[q + 1] = distinct;
  });
  for (size_t i = 1; i < found.offsets.size(); ++i) {
    found.offsets[i] += found.offsets[i - 1];
  }
  found.channels.resize(static_cast<size_t>(found.offsets.back()));
  found.starts.resize(static_cast<size_t>(found.offsets.back() + 1));
  found.rows.resize(static_cast<size_t>(entries));
  found.starts.back() = entries;
  over_positions(batch, inputs, [&](int64_t q, int64_t, int64_t) {
    int64_t entry = found.offsets[q] - 1;
    for (int64_t i = begin[q]; i < begin[q + 1]; ++i) {
      if (i == begin[q] || won[i].channel != won[i - 1].channel) {
        ++entry;
        found.channels[entry] = won[i].channel;
        found.starts[entry] = i;
      }
      found.rows[i] = won[i].row;
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

#define FASTLRP_INSTANTIATE(T)                                                                                       \
  template void sparse_count<T>(const Map<T>&, int64_t, int64_t, int64_t, int64_t*);                                 \
  template void sparse_fill<T>(const Map<T>&, int64_t, int64_t, int64_t, const int64_t*, int32_t*);                  \
  template void sparse_from_dense<T>(const DenseMap<const T>&, const Pattern&, T*, int64_t);                         \
  template void sparse_to_dense<T>(const Rows<T>&, int64_t, const DenseMap<T>&);                                     \
  template void sparse_sum<T>(const std::vector<Summand<T>>&, const Pattern&, int64_t, int64_t, T*, int64_t);        \
  template void sparse_gather_sum<T>(const Rows<T>&, const int64_t*, const int64_t*, int64_t, int64_t, T*, int64_t)

FASTLRP_INSTANTIATE(float);
FASTLRP_INSTANTIATE(double);
template void sparse_count<bool>(const Map<bool>&, int64_t, int64_t, int64_t, int64_t*);
template void sparse_fill<bool>(const Map<bool>&, int64_t, int64_t, int64_t, const int64_t*, int32_t*);

}  // namespace fastlrp::cpu
