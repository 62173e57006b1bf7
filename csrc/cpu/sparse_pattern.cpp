// Patterns of alive neurons, and what moves rows between patterns and dense tensors.

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "sparse.h"
#include "sparse_kernel.h"
#include "sparse_positions.h"

namespace fastlrp::cpu {
namespace {

// The place that an index names, one of `places`.
int64_t named_by(int64_t index, int64_t places) {
  if (static_cast<uint64_t>(index) >= static_cast<uint64_t>(places)) {
    throw std::out_of_range("index must name one of the " + std::to_string(places) + " places of its map, got " +
                            std::to_string(index));
  }
  return index;
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
              to[c] = mask.map.at(b, c, mask.index.data == nullptr ? p : named_by(mask.index.at(b, c, p), mask.places));
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

namespace {

// Channels and targets that change places together. Maps of several targets lie a multiple of 4 KB apart as a rule, so
// that the lines of more than kWays of them at one place do not stay in a first-level cache while their numbers are
// taken one by one (512 channels at 28x28, AMD EPYC, Zen 4: rows of 8 targets become a map in 4 ms, those of 15 in 23).
constexpr int64_t kSquare = 16, kWays = 8;

// Some channels of a position, for some targets: visit(the first channel, how many, the first target, how many).
template <class Visit>
FASTLRP_INLINE void over_squares(int64_t channels, int64_t targets, const Visit& visit) {
  for (int64_t c = 0; c < channels; c += kSquare) {
    for (int64_t k = 0; k < targets; k += kSquare) {
      visit(c, std::min(kSquare, channels - c), k, std::min(kSquare, targets - k));
    }
  }
}

template <class T>
void copy(const T* from, int64_t count, T* to) {
  if (count == kSquare) {
    std::memcpy(to, from, kSquare * sizeof(T));  // Of a size that is known, so that it is no call.
  } else {
    std::copy(from, from + count, to);
  }
}

}  // namespace

template <class T>
void sparse_from_dense(const DenseMap<const T>& dense, const Pattern& pattern, T* values, int64_t stride) {
  over_positions(dense.batch, dense.spatial, [&](int64_t q, int64_t b, int64_t p) {
    const T* at = dense.data + b * dense.batch_stride + p * dense.position_stride;
    const bool squares = dense.channel_stride == 1 && dense.targets > kWays;
    if (squares) {
      T square[kSquare][kSquare];
      int64_t next = pattern.offsets[q], e = next;
      over_squares(dense.channels, dense.targets, [&](int64_t c, int64_t channels, int64_t k, int64_t targets) {
        e = k == 0 ? next : e;
        next = advance(pattern, q, e, static_cast<int32_t>(c + channels));
        if (next == e) {
          return;
        }
        for (int64_t i = 0; i < targets; ++i) {
          copy(at + c + (k + i) * dense.target_stride, channels, square[i]);
        }
        for (int64_t entry = e; entry < next; ++entry) {
          const T* from = square[0] + pattern.channels[entry] - c;
          T* to = values + entry * stride + k;
          for (int64_t i = 0; i < targets; ++i) {
            to[i] = from[i * kSquare];
          }
        }
      });
    }
    for (int64_t e = pattern.offsets[q]; e < pattern.offsets[q + 1]; ++e) {
      const T* from = at + pattern.channels[e] * dense.channel_stride;
      T* to = values + e * stride;
      for (int64_t k = 0; k < dense.targets && !squares; ++k) {
        to[k] = from[k * dense.target_stride];
      }
      for (int64_t k = dense.targets; k < stride; ++k) {
        to[k] = T(0);
      }
    }
  });
}

template <class T>
void sparse_to_dense(const Rows<T>& rows, const DenseMap<T>& dense) {
  over_positions(dense.batch, dense.spatial, [&](int64_t q, int64_t b, int64_t p) {
    T* at = dense.data + b * dense.batch_stride + p * dense.position_stride;
    int64_t next = rows.pattern.offsets[q], e = next;
    over_squares(dense.channels, dense.targets, [&](int64_t c, int64_t channels, int64_t k, int64_t targets) {
      T square[kSquare][kSquare] = {};
      e = k == 0 ? next : e;
      next = advance(rows.pattern, q, e, static_cast<int32_t>(c + channels));
      for (int64_t entry = e; entry < next; ++entry) {
        const T* from = rows.row(entry) + k;
        T* to = square[0] + rows.pattern.channels[entry] - c;
        for (int64_t i = 0; i < targets; ++i) {
          to[i * kSquare] = from[i];
        }
      }
      for (int64_t i = 0; i < targets; ++i) {
        T* to = at + c * dense.channel_stride + (k + i) * dense.target_stride;
        if (dense.channel_stride == 1) {
          copy(square[i], channels, to);
          continue;
        }
        for (int64_t j = 0; j < channels; ++j) {
          to[j * dense.channel_stride] = square[i][j];
        }
      }
    });
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

#define FASTLRP_INSTANTIATE(T)                                                                \
  template Entries sparse_pattern<T>(const std::vector<Mask<T>>&, int64_t, int64_t, int64_t); \
  template void sparse_from_dense<T>(const DenseMap<const T>&, const Pattern&, T*, int64_t);  \
  template void sparse_to_dense<T>(const Rows<T>&, const DenseMap<T>&);                       \
  template void sparse_sum<T>(const std::vector<Summand<T>>&, const Pattern&, int64_t, int64_t, T*, int64_t)

FASTLRP_INSTANTIATE(float);
FASTLRP_INSTANTIATE(double);

}  // namespace fastlrp::cpu
