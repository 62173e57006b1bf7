#include "conv_rest.h"

#include <numeric>
#include <vector>

#include "../common/isa.h"
#include "../common/parallel.h"

namespace fastlrp::cpu {
namespace {

constexpr int64_t kLanes = 16;

FASTLRP_INLINE bool is_small(float y, float whole, float divided, float most) {
  const float size = divided < 0.0f ? -divided : divided;
  // What is not a number is small. No short cuts, which would keep lanes apart.
  return (divided != 0.0f) & (!(size <= most * y) | !(whole <= most * y));
}

// `count` differences, and how many of them are small.
struct Differences {
  FASTLRP_INLINE static void run(const float* whole, const float* part, const float* divided, int64_t count, float most,
                                 float* y, int64_t* found) {
    int64_t number = 0, first = 0;
    for (; first + kLanes <= count; first += kLanes) {
      int32_t some = 0;
      for (int64_t i = first; i < first + kLanes; ++i) {
        y[i] = part[i] - whole[i];
        some += static_cast<int32_t>(is_small(y[i], whole[i], divided[i], most));
      }
      number += some;
    }
    for (; first < count; ++first) {
      y[first] = part[first] - whole[first];
      number += is_small(y[first], whole[first], divided[first], most);
    }
    *found = number;
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

  FASTLRP_INLINE static void run(const ConvRest* p, int64_t sample, int64_t row) {
    const float* x = p->x + sample * p->size[0] * p->size[1] * p->inputs;
    const float* divided = p->divided == nullptr ? p->whole : p->divided;
    const int64_t count = p->out_size[1] * p->outputs, at = (sample * p->out_size[0] + row) * count;
    for (int64_t i = 0; i < count; ++i) {
      if (is_small(p->y[at + i], p->whole[at + i], divided[at + i], p->most)) {
        p->y[at + i] = sum(*p, x, row, i / p->outputs, i % p->outputs);
      }
    }
  }
};

}  // namespace

void conv_rest(const ConvRest& p, bool* kept) {
  const int64_t row = p.out_size[1] * p.outputs, rows = p.samples * p.out_size[0];
  const float* divided = p.divided == nullptr ? p.whole : p.divided;
  std::vector<int64_t> small(rows);
  parallel_for(rows, 8, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      run_best<Differences>(p.whole + i * row, p.part + i * row, divided + i * row, row, p.most, p.y + i * row,
                            &small[i]);
    }
  });
  for (int64_t sample = 0; sample < p.samples; ++sample) {
    const auto first = small.begin() + sample * p.out_size[0];
    kept[sample] = std::accumulate(first, first + p.out_size[0], int64_t{0}) <= p.out_size[0] * row / kRestAgain;
  }
  parallel_for(rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (small[i] > 0 && kept[i / p.out_size[0]]) {
        run_best<Again>(&p, i / p.out_size[0], i % p.out_size[0]);
      }
    }
  });
}

}  // namespace fastlrp::cpu
