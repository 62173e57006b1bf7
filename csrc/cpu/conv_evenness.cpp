#include "conv_evenness.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "../common/isa.h"
#include "../common/parallel.h"

namespace fastlrp::cpu {
namespace {

// sums[i] = what place i holds, for `places` rows of `channels` numbers, which are a multiple of kWinogradLanes.
struct Held {
  FASTLRP_INLINE static void run(const float* x, const float* scale, int64_t places, int64_t channels, float* sums) {
    constexpr int64_t lanes = kWinogradLanes;
    for (int64_t place = 0; place < places; ++place, x += channels) {
      float found[lanes] = {};
      for (int64_t c = 0; c < channels; c += lanes) {
        for (int64_t i = 0; i < lanes; ++i) {
          const float value = scale == nullptr ? x[c + i] : x[c + i] * scale[c + i];
          found[i] += value < 0.0f ? -value : value;
        }
      }
      float sum = 0.0f;
      for (int64_t i = 0; i < lanes; ++i) {
        sum += found[i];
      }
      sums[place] = sum;
      if (scale != nullptr) {
        scale += channels;
      }
    }
  }
};

FASTLRP_INLINE bool is_small(float y, float divided, float most) {
  const float size = divided < 0.0f ? -divided : divided;
  return divided != 0.0f && !(size <= most * y);  // what is not a number is small
}

// How many of `count` sums are to be made again.
struct Small {
  FASTLRP_INLINE static void run(const float* y, const float* divided, int64_t count, float most, int64_t* found) {
    int64_t number = 0;
    for (int64_t first = 0; first < count; first += kWinogradLanes) {
      int32_t some = 0;
      for (int64_t i = first; i < first + kWinogradLanes; ++i) {
        const float size = divided[i] < 0.0f ? -divided[i] : divided[i];
        some += static_cast<int32_t>(divided[i] != 0.0f) & static_cast<int32_t>(!(size <= most * y[i]));
      }
      number += some;
    }
    *found = number;
  }
};

// One row of sums, of which the small ones are made again, each as 16 partial ones side by side.
struct Again {
  FASTLRP_INLINE static float sum(const WinogradRepair& p, const float* x, int64_t row, int64_t column,
                                  int64_t output) {
    constexpr int64_t lanes = kWinogradLanes, taps = kWinogradTaps;
    const int64_t top = row - p.top, left = column - p.left;
    const float* weight = p.weight + output * taps * taps * p.inputs;
    float found[lanes] = {};
    for (int64_t a = std::max<int64_t>(0, -top); a < std::min(taps, p.height - top); ++a) {
      for (int64_t b = std::max<int64_t>(0, -left); b < std::min(taps, p.width - left); ++b) {
        const float* numbers = x + ((top + a) * p.width + left + b) * p.inputs;
        const float* matrix = weight + (a * taps + b) * p.inputs;
        for (int64_t c = 0; c < p.inputs; c += lanes) {
          for (int64_t i = 0; i < lanes; ++i) {
            found[i] += numbers[c + i] * matrix[c + i];
          }
        }
      }
    }
    float total = p.bias == nullptr ? 0.0f : p.bias[output];
    for (int64_t i = 0; i < lanes; ++i) {
      total += found[i];
    }
    return total;
  }

  FASTLRP_INLINE static void run(const WinogradRepair* p, int64_t sample, int64_t row) {
    const float* x = p->x + sample * p->height * p->width * p->inputs;
    const int64_t count = p->out_width * p->outputs, at = (sample * p->out_height + row) * count;
    float* y = p->y + at;
    for (int64_t i = 0; i < count; ++i) {
      if (is_small(y[i], p->divided[at + i], p->most)) {
        y[i] = sum(*p, x, row, i / p->outputs, i % p->outputs);
      }
    }
  }
};

// How many of `count` sums, chosen by their numbers alone, are small.
struct SmallOfSome {
  FASTLRP_INLINE static void run(const WinogradRepair* p, int64_t sample, int64_t count, int64_t* found) {
    const float* x = p->x + sample * p->height * p->width * p->inputs;
    const int64_t all = p->out_height * p->out_width * p->outputs;
    *found = 0;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t place = i * 2654435761 % all, position = place / p->outputs;
      const float divided = p->divided[sample * all + place];
      if (divided != 0.0f) {
        const float sum = Again::sum(*p, x, position / p->out_width, position % p->out_width, place % p->outputs);
        *found += is_small(sum, divided, p->most);
      }
    }
  }
};

// Whether one tile is even; `tile`: what its 6x6 places hold, rows `width` apart; `rows` and `columns`: of its windows.
bool even_tile(const float* tile, int64_t width, int64_t rows, int64_t columns, float most) {
  constexpr int64_t in = kWinogradIn, out = kWinogradOut;
  float largest = 0.0f, total = 0.0f, along[in][out];
  for (int64_t i = 0; i < in; ++i, tile += width) {
    for (int64_t j = 0; j < in; ++j) {
      largest = std::max(largest, tile[j]);
      total += tile[j];
    }
    for (int64_t j = 0; j < out; ++j) {
      along[i][j] = tile[j] + tile[j + 1] + tile[j + 2];
    }
  }
  if (!(total - total == 0.0f)) {
    return false;  // not numbers, or too large
  }
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      const float read = along[i][j] + along[i + 1][j] + along[i + 2][j];
      if (read > 0.0f && read * most < largest) {
        return false;
      }
    }
  }
  return true;
}

// What each place of all samples holds, with zeros around, for whole tiles.
struct HeldMaps {
  int64_t width;
  std::vector<std::vector<float>> sums;

  explicit HeldMaps(const Winograd& p) : sums(p.samples) {
    constexpr int64_t out = kWinogradOut, margin = kWinogradIn - kWinogradOut;
    const int64_t height = (p.out_height + out - 1) / out * out + margin;
    width = (p.out_width + out - 1) / out * out + margin;
    for (auto& each : sums) {
      each.resize(height * width);
    }
    const int64_t rows = std::min(p.height, height - p.top), columns = std::min(p.width, width - p.left);
    const int64_t map = p.height * p.width * p.inputs;
    parallel_for(p.samples * rows, 8, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t sample = i / rows, row = i % rows, at = row * p.width * p.inputs;
        const float* scale = p.scale == nullptr ? nullptr : p.scale + sample / p.targets * map + at;
        run_best<Held>(p.x + sample * map + at, scale, columns, p.inputs,
                       sums[sample].data() + (row + p.top) * width + p.left);
      }
    });
  }

  const float* at(int64_t sample, int64_t top, int64_t left) const { return sums[sample].data() + top * width + left; }

  float largest(int64_t sample, int64_t top, int64_t left) const {
    float found = 0.0f;
    for (int64_t i = 0; i < kWinogradIn; ++i) {
      for (int64_t j = 0; j < kWinogradIn; ++j) {
        found = std::max(found, at(sample, top + i, left)[j]);
      }
    }
    return found;
  }
};

// found[n] = whether `holds` is true of each tile of sample n, which is given as (n, its first row, its first column).
template <class Holds>
void each_sample(const Winograd& p, bool* found, const Holds& holds) {
  const int64_t down = (p.out_height + kWinogradOut - 1) / kWinogradOut;
  std::vector<char> failed(p.samples * down);
  parallel_for(p.samples * down, 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t left = 0; left < p.out_width && failed[i] == 0; left += kWinogradOut) {
        failed[i] = !holds(i / down, i % down * kWinogradOut, left);
      }
    }
  });
  for (int64_t sample = 0; sample < p.samples; ++sample) {
    const auto first = failed.begin() + sample * down;
    found[sample] = std::none_of(first, first + down, [](char one) { return one != 0; });
  }
}

// The largest of |times| sizes of one tile, and the sum of |y times|; rows are `line` numbers apart.
struct Shared {
  FASTLRP_INLINE static void run(const float* y, const float* times, const float* sizes, int64_t channels, int64_t rows,
                                 int64_t columns, int64_t line, float* largest, float* total) {
    constexpr int64_t lanes = kWinogradLanes;
    float most[lanes] = {}, sum[lanes] = {};
    for (int64_t i = 0; i < rows; ++i, y += line, times += line) {
      for (int64_t j = 0; j < columns; ++j) {
        for (int64_t c = 0; c < channels; c += lanes) {
          for (int64_t lane = 0; lane < lanes; ++lane) {
            const float given = times[j * channels + c + lane], size = given < 0.0f ? -given : given;
            const float share = y[j * channels + c + lane] * size, own = size * sizes[c + lane];
            sum[lane] += share < 0.0f ? -share : share;
            most[lane] = own > most[lane] ? own : most[lane];
          }
        }
      }
    }
    for (int64_t lane = 0; lane < lanes; ++lane) {
      *largest = std::max(*largest, most[lane]);
      *total += sum[lane];
    }
  }
};

}  // namespace

void winograd_even(const Winograd& p, float most, bool* even) {
  const HeldMaps held(p);
  each_sample(p, even, [&](int64_t sample, int64_t top, int64_t left) {
    const int64_t rows = std::min(kWinogradOut, p.out_height - top);
    const int64_t columns = std::min(kWinogradOut, p.out_width - left);
    return even_tile(held.at(sample, top, left), held.width, rows, columns, most);
  });
}

void winograd_tells(const Winograd& p, const WinogradShares& shares, float most, bool* told) {
  const HeldMaps held(p);
  const int64_t line = p.out_width * p.outputs, map = p.out_height * line;
  each_sample(p, told, [&](int64_t sample, int64_t top, int64_t left) {
    const int64_t rows = std::min(kWinogradOut, p.out_height - top);
    const int64_t columns = std::min(kWinogradOut, p.out_width - left);
    const int64_t at = top * line + left * p.outputs;
    float largest = 0.0f, total = 0.0f;
    run_best<Shared>(p.y + sample * map + at, shares.times + sample / p.targets * map + at, shares.sizes, p.outputs,
                     rows, columns, line, &largest, &total);
    return largest == 0.0f || held.largest(sample, top, left) * largest <= most * total;
  });
}

void winograd_repair(const WinogradRepair& p, bool* kept) {
  const int64_t row = p.out_width * p.outputs, rows = p.samples * p.out_height;
  std::vector<int64_t> small(rows);
  parallel_for(rows, 8, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      run_best<Small>(p.y + i * row, p.divided + i * row, row, p.most, &small[i]);
    }
  });
  for (int64_t sample = 0; sample < p.samples; ++sample) {
    const auto first = small.begin() + sample * p.out_height;
    kept[sample] = std::accumulate(first, first + p.out_height, int64_t{0}) <= p.out_height * row / kRepaired;
  }
  parallel_for(rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (small[i] > 0 && kept[i / p.out_height]) {
        run_best<Again>(&p, i / p.out_height, i % p.out_height);
      }
    }
  });
}

void winograd_few_small(const WinogradRepair& p, bool* few) {
  constexpr int64_t some = 128;
  parallel_for(p.samples, 1, [&](int64_t begin, int64_t end) {
    for (int64_t sample = begin; sample < end; ++sample) {
      int64_t found = 0;
      run_best<SmallOfSome>(&p, sample, some, &found);
      few[sample] = found <= some / (2 * kRepaired);
    }
  });
}

}  // namespace fastlrp::cpu
