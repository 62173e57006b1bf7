#pragma once

#include <cstdint>
#include <numeric>
#include <stdexcept>
#include <string>

#include "divisor.h"

// Which inputs and outputs a window joins along one spatial axis: of pools and convolutions, on the CPU and the GPU.
// Sizes and padding are not negative, taps, stride and dilation at least 1.

namespace fastlrp {

inline int32_t below_2_31(int64_t number) {
  if (number < 0 || number > INT32_MAX) {
    throw std::invalid_argument("sizes and windows must be given by numbers in [0, 2^31), got " +
                                std::to_string(number));
  }
  return static_cast<int32_t>(number);
}

// The places first, first + step, …, `count` of them; first is 0 where there are none.
struct Span {
  int32_t first, count, step;
};

// Tap t of window o stands at the input o * stride - padding + t * dilation, where there is one. A transposed
// convolution joins the same places with the two sides exchanged.
struct Axis {
  int32_t inputs = 1, outputs = 1, taps = 1, stride = 1, padding = 0, dilation = 1;
  // Windows that share an input are a multiple of `step` apart. An input of which (i + padding) is no multiple of
  // `common` = gcd(dilation, stride) is in none; inverse * stride / common = 1 modulo step.
  int32_t step = 1, common = 1, inverse = 0;
  Divisor by_stride;

  Axis() = default;  // one window over one entry

  // Throws std::invalid_argument for numbers from 2^31 on.
  Axis(int64_t inputs_, int64_t outputs_, int64_t taps_, int64_t stride_, int64_t padding_, int64_t dilation_)
      : inputs(below_2_31(inputs_)),
        outputs(below_2_31(outputs_)),
        taps(below_2_31(taps_)),
        stride(below_2_31(stride_)),
        padding(below_2_31(padding_)),
        dilation(below_2_31(dilation_)),
        common(std::gcd(dilation, stride)),
        by_stride(stride) {
    step = dilation / common;
    // Euclid's algorithm; kept: factor * stride / common = rest modulo step.
    int64_t rest = step, next_rest = stride / common % step, factor = 0, next_factor = 1;
    while (next_rest != 0) {
      const int64_t quotient = rest / next_rest, old_rest = rest, old_factor = factor;
      rest = next_rest, next_rest = old_rest - quotient * next_rest;
      factor = next_factor, next_factor = old_factor - quotient * next_factor;
    }
    inverse = static_cast<int32_t>((factor % step + step) % step);
  }

  FASTLRP_HOST_DEVICE int64_t start_of(int64_t o) const { return o * stride - padding; }

  // The input at a tap of window o, or -1.
  FASTLRP_HOST_DEVICE int32_t input_at(int64_t o, int64_t tap) const {
    const int64_t i = start_of(o) + tap * dilation;
    return i >= 0 && i < inputs ? static_cast<int32_t>(i) : -1;
  }

  // The window of which a tap stands at input i, or -1.
  FASTLRP_HOST_DEVICE int32_t output_at(int64_t i, int64_t tap) const {
    const int64_t from = i + padding - tap * dilation;
    if (from < 0) {
      return -1;
    }
    const uint32_t o = by_stride.divide(static_cast<uint32_t>(from));
    return int64_t{o} * stride == from && o < static_cast<uint32_t>(outputs) ? static_cast<int32_t>(o) : -1;
  }

  // The first place of window o that is not in front of the inputs; it may be behind them.
  FASTLRP_HOST_DEVICE int64_t first_of(int64_t o) const {
    const int64_t start = start_of(o);
    return start < 0 ? start + skipped_by(start) * dilation : start;
  }

  // The inputs of window o.
  FASTLRP_HOST_DEVICE Span inputs_of(int64_t o) const {
    const int64_t start = start_of(o);
    if (start >= inputs) {
      return {0, 0, dilation};
    }
    const uint32_t inside = static_cast<uint32_t>(inputs - start);
    const int64_t skipped = start < 0 ? skipped_by(start) : 0;
    const int64_t fit = dilation == 1 ? inside : (int64_t{inside} + dilation - 1) / dilation;
    const int64_t end = fit < taps ? fit : taps;
    if (skipped >= end) {
      return {0, 0, dilation};
    }
    return {static_cast<int32_t>(start + skipped * dilation), static_cast<int32_t>(end - skipped), dilation};
  }

  // The windows of input i.
  FASTLRP_HOST_DEVICE Span outputs_of(int64_t i) const {
    const uint32_t from = static_cast<uint32_t>(i + padding);
    const int64_t reach = int64_t{taps - 1} * dilation;  // o * stride is in [from - reach, from]
    const int64_t last = by_stride.divide(from);
    int64_t first = from <= reach ? 0 : int64_t{by_stride.divide(static_cast<uint32_t>(from - reach - 1))} + 1;
    if (dilation > 1) {
      const uint32_t units = from / static_cast<uint32_t>(common), period = static_cast<uint32_t>(step);
      if (units * static_cast<uint32_t>(common) != from) {
        return {0, 0, step};
      }
      if (step > 1) {
        const uint64_t residue = uint64_t{units % period} * static_cast<uint32_t>(inverse) % period;
        first += static_cast<uint32_t>(residue + period - static_cast<uint32_t>(first) % period) % period;
      }
    }
    const int64_t end = last < outputs ? last + 1 : outputs;
    if (first >= end) {
      return {0, 0, step};
    }
    return {static_cast<int32_t>(first), static_cast<int32_t>(step == 1 ? end - first : (end - first - 1) / step + 1),
            step};
  }

  // What an average over window o divides by, as PyTorch counts: with count_include_pad up to the padded edge, over
  // which a window of ceil_mode may hang. 0 where the window holds nothing. Dilation is 1.
  FASTLRP_HOST_DEVICE int64_t averaged(int64_t o, bool count_include_pad) const {
    const int64_t start = start_of(o), end = start + taps;
    const int64_t held = (end < inputs ? end : inputs) - (start > 0 ? start : 0);
    if (held <= 0) {
      return 0;
    }
    const int64_t edge = int64_t{inputs} + padding;
    return count_include_pad ? (end < edge ? end : edge) - start : held;
  }

  // A part of the inputs for each window, without gaps or overlap: from its start to the next one's, the first and the
  // last up to the edges. Where windows don't overlap the window is in its part.
  FASTLRP_HOST_DEVICE Span part_of(int64_t o) const {
    const int64_t begin = o == 0 ? 0 : clipped(start_of(o)), end = o + 1 == outputs ? inputs : clipped(start_of(o + 1));
    return {static_cast<int32_t>(begin < end ? begin : 0), static_cast<int32_t>(begin < end ? end - begin : 0), 1};
  }

 private:
  // Taps in front of the inputs; start is negative, and not below -padding.
  FASTLRP_HOST_DEVICE int64_t skipped_by(int64_t start) const {
    return dilation == 1 ? -start : (-start + dilation - 1) / dilation;
  }
  FASTLRP_HOST_DEVICE int64_t clipped(int64_t i) const { return i < 0 ? 0 : (i < inputs ? i : inputs); }
};

// Window o covers floor(o inputs / outputs) to ceil((o + 1) inputs / outputs).
struct AdaptiveAxis {
  int32_t inputs = 1, outputs = 1;
  Divisor by_inputs, by_outputs;

  AdaptiveAxis() = default;  // one window over one entry

  // Throws std::invalid_argument for numbers from 2^31 on.
  AdaptiveAxis(int64_t inputs_, int64_t outputs_)
      : inputs(below_2_31(inputs_)),
        outputs(below_2_31(outputs_)),
        by_inputs(inputs > 0 ? inputs : 1),
        by_outputs(outputs > 0 ? outputs : 1) {}

  FASTLRP_HOST_DEVICE Span inputs_of(int64_t o) const { return shares(o, inputs, by_outputs); }
  FASTLRP_HOST_DEVICE Span outputs_of(int64_t i) const { return shares(i, outputs, by_inputs); }
  FASTLRP_HOST_DEVICE int64_t averaged(int64_t o) const { return inputs_of(o).count; }

 private:
  // Both sides are cut into equal shares of the same line: the numbers of the other side's that this one meets.
  FASTLRP_HOST_DEVICE static Span shares(int64_t number, int32_t others, const Divisor& by_mine) {
    const uint64_t begin = by_mine.divide_wide(static_cast<uint64_t>(number) * static_cast<uint32_t>(others));
    const uint64_t end =
        others == 0 ? 0
                    : by_mine.divide_wide(static_cast<uint64_t>(number + 1) * static_cast<uint32_t>(others) - 1) + 1;
    return {static_cast<int32_t>(begin < end ? begin : 0), static_cast<int32_t>(begin < end ? end - begin : 0), 1};
  }
};

}  // namespace fastlrp
