#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "../common/axis.h"
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
    const int64_t outer = w.transposed ? w.out[axis] : w.in[axis], inner = w.transposed ? w.in[axis] : w.out[axis];
    const Axis line(outer, inner, w.taps[axis], w.stride[axis], w.padding[axis], w.dilation[axis]);
    table.resize(static_cast<size_t>(w.taps[axis] * inputs));
    int32_t* to = table.data();
    for (int64_t t = 0; t < w.taps[axis]; ++t) {
      for (int64_t i = 0; i < inputs; ++i) {
        *to++ = w.transposed ? line.input_at(i, t) : line.output_at(i, t);
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
