#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "sparse.h"

// What the sparse kernels share: which outputs a window joins with which inputs, and scratch memory.

namespace fastlrp::cpu {

template <class T>
class Buffer {
 public:
  T* reserve(int64_t count) {
    if (count > capacity_) {
      capacity_ = count + count / 2 + 64;
      data_.reset(static_cast<T*>(::operator new(capacity_ * sizeof(T), std::align_val_t{64})));
    }
    return data_.get();
  }
  T* get() const { return data_.get(); }

 private:
  struct Free {
    void operator()(T* p) const { ::operator delete(p, std::align_val_t{64}); }
  };
  std::unique_ptr<T, Free> data_;
  int64_t capacity_ = 0;
};

struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

// Output coordinate that tap t joins with input coordinate i, or -1.
struct Reach {
  std::vector<int32_t> table;
  int64_t inputs;

  Reach(const Window& w, int axis) : inputs(w.in[axis]) {
    table.resize(static_cast<size_t>(w.taps[axis] * inputs));
    for (int64_t t = 0; t < w.taps[axis]; ++t) {
      for (int64_t i = 0; i < inputs; ++i) {
        int64_t o;
        if (w.transposed) {
          o = i * w.stride[axis] - w.padding[axis] + t * w.dilation[axis];
        } else {
          o = i + w.padding[axis] - t * w.dilation[axis];
          o = o >= 0 && o % w.stride[axis] == 0 ? o / w.stride[axis] : -1;
        }
        table[t * inputs + i] = o >= 0 && o < w.out[axis] ? static_cast<int32_t>(o) : -1;
      }
    }
  }
  const int32_t* tap(int64_t t) const { return table.data() + t * inputs; }

  // All outputs within reach of the inputs in a range.
  Range outputs(int64_t taps, Range in) const {
    Range found{INT64_MAX, -1};
    for (int64_t t = 0; t < taps; ++t) {
      for (int64_t i = in.begin; i < in.end; ++i) {
        const int64_t o = tap(t)[i];
        if (o >= 0) {
          found = {std::min(found.begin, o), std::max(found.end, o + 1)};
        }
      }
    }
    return found.end < 0 ? Range{0, 0} : found;
  }
};

}  // namespace fastlrp::cpu
