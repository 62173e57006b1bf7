// Random tensors, registers and windows for the tests of csrc/cpu/sparse, with hostile sizes and strides, and NaN
// wherever nothing may be read.
#pragma once

#include "../../csrc/cpu/sparse.h"
#include "check.h"

namespace native::sparse {

using namespace fastlrp::cpu;

// While set, random numbers are such that products of bfloat16 are exact: coefficients are whole and at most 2, what
// they are multiplied with is rounded.
inline bool few_digits = false;

template <class T>
std::vector<T> whole_numbers(int64_t size) {
  std::vector<T> values = native::mixed<T>(size);
  for (T& value : values) {
    value = few_digits ? std::clamp<T>(std::round(value), T(-2), T(2)) : value;
  }
  return values;
}

template <class T>
std::vector<T> narrow_numbers(int64_t size) {
  std::vector<T> values = native::mixed<T>(size);
  for (T& value : values) {
    value = few_digits ? static_cast<T>(static_cast<float>(fastlrp::Bf16(static_cast<float>(value)))) : value;
  }
  return values;
}

inline int64_t round_up(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

// A dense tensor (B, C, positions) in memory of exactly its span, NaN in the gaps; `dense` is the same without gaps.
template <class T>
struct Tensor {
  int64_t batch, channels, positions;
  std::vector<T> memory, dense;
  Map<T> map;

  Tensor(int64_t b, int64_t c, int64_t n, bool ones = false) : batch(b), channels(c), positions(n) {
    const bool last = native::integer(0, 1) == 1;
    const int64_t gap = native::integer(0, 2);
    map.channel = last ? 1 : n + gap;
    map.position = last ? c + gap : 1;
    map.batch = (last ? n * map.position : c * map.channel) + native::integer(0, 3);
    dense = ones ? std::vector<T>(b * c * n, T(1)) : whole_numbers<T>(b * c * n);
    memory = native::poisoned<T>(
        dense.empty() ? 0 : (b - 1) * map.batch + (c - 1) * map.channel + (n - 1) * map.position + 1);
    for (int64_t i = 0; i < static_cast<int64_t>(dense.size()); ++i) {
      memory[i / n / c * map.batch + i / n % c * map.channel + i % n * map.position] = dense[i];
    }
    map.data = memory.data();
  }
  double at(int64_t b, int64_t c, int64_t p) const { return dense[(b * channels + c) * positions + p]; }
};

// The entries of a tensor that are not zero, by loops.
template <class T>
Entries entries_of(const std::vector<const Tensor<T>*>& masks) {
  const Tensor<T>& first = *masks.front();
  Entries found;
  found.offsets.push_back(0);
  for (int64_t q = 0; q < first.batch * first.positions; ++q) {
    for (int64_t c = 0; c < first.channels; ++c) {
      bool alive = false;
      for (const Tensor<T>* mask : masks) {
        alive = alive || mask->at(q / first.positions, c, q % first.positions) != 0;
      }
      if (alive) {
        found.channels.push_back(static_cast<int32_t>(c));
      }
    }
    found.offsets.push_back(static_cast<int64_t>(found.channels.size()));
  }
  return found;
}

inline Pattern view(const Entries& entries) {
  return {entries.offsets.data(), entries.channels.data(), static_cast<int64_t>(entries.offsets.size()) - 1};
}

// A register with one row of targets per entry, in any order and in a table that is NaN apart from them.
template <class T>
struct Register {
  Entries entries;
  int64_t targets, stride, start;
  std::vector<T> table;
  std::vector<int64_t> place;
  std::vector<T> values;  // (entries, targets)

  Register(const Entries& of, int64_t k) : entries(of), targets(k) {
    const int64_t count = entries.offsets.back();
    start = native::integer(0, 5);
    stride = start + k + native::integer(0, 3);
    values = narrow_numbers<T>(count * k);
    if (native::integer(0, 1) == 1) {
      for (int64_t e = 0; e < count; ++e) {
        place.push_back(count - 1 - e);
      }
    }
    // Up to the last target of the last row, not to the end of the row.
    table = native::poisoned<T>(count == 0 ? 0 : (count - 1) * stride + start + k);
    for (int64_t i = 0; i < count * k; ++i) {
      table[(place.empty() ? i / k : place[i / k]) * stride + start + i % k] = values[i];
    }
  }
  Rows<T> rows() const {
    return {table.data() + (table.empty() ? 0 : start), stride, place.empty() ? nullptr : place.data(), view(entries)};
  }
  // Of a neuron, zero where it has no entry.
  double at(int64_t q, int64_t c, int64_t k) const {
    for (int64_t e = entries.offsets[q]; e < entries.offsets[q + 1]; ++e) {
      if (entries.channels[e] == c) {
        return values[e * targets + k];
      }
    }
    return 0;
  }
};

struct Axis {
  int64_t in = 1, out = 1, taps = 1, stride = 1, padding = 0, dilation = 1;
};

// Random, with any number of outputs: as many as fit, fewer, or more, which nothing then reaches.
inline Axis random_axis(bool transposed) {
  Axis axis;
  axis.in = native::integer(1, native::integer(0, 5) == 0 ? 40 : 7);
  axis.taps = native::integer(1, 4);
  axis.stride = native::integer(1, 3);
  axis.dilation = native::integer(1, 3);
  axis.padding = native::integer(0, 5);
  const int64_t reach = axis.dilation * (axis.taps - 1) + 1;
  axis.out = transposed ? (axis.in - 1) * axis.stride + reach - 2 * axis.padding
                        : (axis.in + 2 * axis.padding - reach) / axis.stride + 1;
  axis.out = std::clamp<int64_t>(axis.out + native::integer(-1, 1), 1, 90);
  return axis;
}

inline Window random_window(int dims, bool transposed) {
  Window w{{1, 1, 1}, {1, 1, 1}, {1, 1, 1}, {1, 1, 1}, {0, 0, 0}, {1, 1, 1}, transposed};
  for (int i = 3 - dims; i < 3; ++i) {
    const Axis a = random_axis(transposed);
    w.in[i] = a.in, w.out[i] = a.out, w.taps[i] = a.taps;
    w.stride[i] = a.stride, w.padding[i] = a.padding, w.dilation[i] = a.dilation;
  }
  if (dims == 3) {
    w.in[1] = std::min<int64_t>(w.in[1], 4), w.in[2] = std::min<int64_t>(w.in[2], 5);
  }
  return w;
}

inline int64_t size_of(const int64_t (&sizes)[3]) { return sizes[0] * sizes[1] * sizes[2]; }

// The output that a tap joins with input i along an axis, or -1.
inline int64_t joined(const Window& w, int axis, int64_t i, int64_t tap) {
  int64_t o = w.transposed ? i * w.stride[axis] - w.padding[axis] + tap * w.dilation[axis]
                           : i + w.padding[axis] - tap * w.dilation[axis];
  if (!w.transposed) {
    o = o >= 0 && o % w.stride[axis] == 0 ? o / w.stride[axis] : -1;
  }
  return o < w.out[axis] ? o : -1;
}

// f(output position, tap) for all taps that join an output with input position p.
template <class Body>
void over_joined(const Window& w, int64_t p, Body&& body) {
  const int64_t at[] = {p / w.in[2] / w.in[1], p / w.in[2] % w.in[1], p % w.in[2]};
  for (int64_t t = 0; t < size_of(w.taps); ++t) {
    const int64_t tap[] = {t / w.taps[2] / w.taps[1], t / w.taps[2] % w.taps[1], t % w.taps[2]};
    int64_t o = 0;
    for (int axis = 0; axis < 3 && o >= 0; ++axis) {
      const int64_t here = joined(w, axis, at[axis], tap[axis]);
      o = here < 0 ? -1 : o * w.out[axis] + here;
    }
    if (o >= 0) {
      body(o, t);
    }
  }
}

constexpr int64_t kTargets[] = {1, 7, 8, 15, 16, 17, 32, 33, 64, 70};

}  // namespace native::sparse
