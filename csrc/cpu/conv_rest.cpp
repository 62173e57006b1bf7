#include "conv_rest.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "../common/isa.h"
#include "../common/parallel.h"

namespace fastlrp::cpu {
namespace {

constexpr int64_t kLanes = 16;

// Outputs that are counted in 32 bits.
constexpr int64_t kBlock = 1024;

FASTLRP_INLINE float size_of(float value) { return value < 0.0f ? -value : value; }

// Without a factor `whole` alone counts.
template <bool has_factor>
FASTLRP_INLINE bool is_small(float y, float whole, float factor, float most) {
  // What is not a number is small. No short cuts, which would keep lanes apart.
  const bool beside_whole = !(whole <= most * y);
  return has_factor ? (factor != 0.0f) & (!(size_of(factor) <= most * y) | beside_whole) : beside_whole;
}

// For the output `whole` that z was read off: it may be far larger than z, and what it rounds is in z.
FASTLRP_INLINE float larger_of(float z, float whole) { return size_of(whole) > z ? size_of(whole) : z; }

// As elementwise_coefficients has it for zplus.
FASTLRP_INLINE float share(float part, float factor, float times, float epsilon) {
  const float sum = part + (part < 0.0f ? -epsilon : epsilon), quotient = factor / sum;
  return factor == 0.0f || sum == 0.0f ? 0.0f : times * quotient;
}

// `count` outputs, and how many of their differences are small.
template <bool has_factor>
struct Differences {
  FASTLRP_INLINE static int32_t some(const float* __restrict whole, const float* __restrict part,
                                     const float* __restrict factor, const ConvRest& p, int64_t count,
                                     float* __restrict above, float* __restrict below) {
    const float alpha = p.alpha, beta = p.beta, epsilon = p.epsilon, most = p.most;
    int32_t found = 0;
    for (int64_t i = 0; i < count; ++i) {
      const float y = part[i] - whole[i], f = has_factor ? factor[i] : 1.0f;
      found += static_cast<int32_t>(is_small<has_factor>(y, whole[i], f, most));
      above[i] = share(part[i], f, alpha, epsilon);
      below[i] = share(y, f, beta, epsilon);
    }
    return found;
  }

  FASTLRP_INLINE static void run(const ConvRest* p, int64_t first, int64_t count, int64_t* found) {
    const int64_t last = first + count;
    const float* factor = has_factor ? p->factor : p->whole;
    int64_t number = 0;
    for (; first + kBlock <= last; first += kBlock) {
      number += some(p->whole + first, p->part + first, factor + first, *p, kBlock, p->above + first, p->below + first);
    }
    number +=
        some(p->whole + first, p->part + first, factor + first, *p, last - first, p->above + first, p->below + first);
    *found = number;
  }
};

// One row of outputs, whose z is shift - whole.
struct BoxDifferences {
  FASTLRP_INLINE static int32_t some(const float* __restrict whole, const float* __restrict part,
                                     const float* __restrict factor, const float* __restrict shift, const ConvRest& p,
                                     float* __restrict below) {
    const float beta = p.beta, epsilon = p.epsilon, most = p.most;
    const int64_t count = p.outputs;
    int32_t found = 0;
    for (int64_t i = 0; i < count; ++i) {
      const float z = shift[i] - whole[i], y = part[i] - z;
      found += static_cast<int32_t>(is_small<true>(y, larger_of(z, whole[i]), factor[i], most));
      below[i] = share(y, factor[i], beta, epsilon);
    }
    return found;
  }

  FASTLRP_INLINE static void run(const ConvRest* p, int64_t row, const float* shift, const float* ones,
                                 int64_t* found) {
    const int64_t width = p->out_size[1] * p->outputs, first = row * width, base = row % p->out_size[0] * width;
    for (int64_t i = 0; i < width; i += p->outputs) {
      const float* factor = p->factor == nullptr ? ones : p->factor + first + i;
      *found += some(p->whole + first + i, p->part + base + i, factor, shift, *p, p->below + first + i);
    }
  }
};

// One row of outputs, of which the small ones are made again, each as 16 partial sums side by side.
struct Again {
  FASTLRP_INLINE static float sum(const ConvRest& p, const float* x, int64_t row, int64_t column, int64_t output) {
    const int64_t top = row * p.stride[0] - p.padding[0], left = column * p.stride[1] - p.padding[1];
    const float* weight = p.weight + output * p.kernel[0] * p.kernel[1] * p.inputs;
    float found[kLanes] = {}, total = p.bias == nullptr ? 0.0f : p.bias[output];
    for (int64_t a = 0; a < p.kernel[0]; ++a) {
      const int64_t i = top + a * p.dilation[0];
      for (int64_t b = 0; b < p.kernel[1]; ++b) {
        const int64_t j = left + b * p.dilation[1];
        if (i < 0 || i >= p.size[0] || j < 0 || j >= p.size[1]) {
          continue;
        }
        const float* numbers = x + (i * p.size[1] + j) * p.inputs;
        const float* matrix = weight + (a * p.kernel[1] + b) * p.inputs;
        int64_t c = 0;
        for (; c + kLanes <= p.inputs; c += kLanes) {
          for (int64_t lane = 0; lane < kLanes; ++lane) {
            found[lane] += numbers[c + lane] * matrix[c + lane];
          }
        }
        for (; c < p.inputs; ++c) {
          total += numbers[c] * matrix[c];
        }
      }
    }
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      total += found[lane];
    }
    return total;
  }

  // `shift`: null, or of conv_rest_of_box.
  FASTLRP_INLINE static void run(const ConvRest* p, int64_t sample, int64_t row, const float* shift) {
    const float* x = p->x + sample * p->size[0] * p->size[1] * p->inputs;
    const int64_t count = p->out_size[1] * p->outputs, at = (sample * p->out_size[0] + row) * count;
    const float* part = p->part + (shift == nullptr ? at : row * count);
    for (int64_t i = 0; i < count; ++i) {
      const float output = p->whole[at + i], z = shift == nullptr ? output : shift[i % p->outputs] - output;
      const float y = part[i] - z, whole = shift == nullptr ? z : larger_of(z, output);
      const float factor = p->factor == nullptr ? 1.0f : p->factor[at + i];
      if (p->factor == nullptr ? is_small<false>(y, whole, 1.0f, p->most) : is_small<true>(y, whole, factor, p->most)) {
        p->below[at + i] = share(sum(*p, x, row, i / p->outputs, i % p->outputs), factor, p->beta, p->epsilon);
      }
    }
  }
};

// `of_row(row, found)` makes one row of outputs and counts small ones.
template <class OfRow>
void all_rows(const ConvRest& p, const float* shift, bool* kept, const OfRow& of_row) {
  const int64_t width = p.out_size[1] * p.outputs, rows = p.samples * p.out_size[0];
  std::vector<int64_t> small(rows);
  parallel_for(rows, 8, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      of_row(row, &small[row]);
    }
  });
  for (int64_t sample = 0; sample < p.samples; ++sample) {
    const auto first = small.begin() + sample * p.out_size[0];
    kept[sample] = std::accumulate(first, first + p.out_size[0], int64_t{0}) <= p.out_size[0] * width / kRestAgain;
  }
  parallel_for(rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      if (small[row] > 0 && kept[row / p.out_size[0]]) {
        run_best<Again>(&p, row / p.out_size[0], row % p.out_size[0], shift);
      }
    }
  });
}

}  // namespace

void conv_rest(const ConvRest& p, bool* kept) {
  const int64_t width = p.out_size[1] * p.outputs;
  const float* none = nullptr;
  all_rows(p, none, kept, [&](int64_t row, int64_t* found) {
    if (p.factor == nullptr) {
      run_best<Differences<false>>(&p, row * width, width, found);
    } else {
      run_best<Differences<true>>(&p, row * width, width, found);
    }
  });
}

void conv_rest_of_box(const ConvRest& p, const float* shift_, bool* kept) {
  const std::vector<float> zeros(p.outputs, 0.0f), ones(p.outputs, 1.0f);
  const float *shift = shift_ == nullptr ? zeros.data() : shift_, *one = ones.data();
  all_rows(p, shift, kept, [&](int64_t row, int64_t* found) { run_best<BoxDifferences>(&p, row, shift, one, found); });
}

}  // namespace fastlrp::cpu
