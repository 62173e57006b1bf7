#include "conv_evenness.h"

#include <algorithm>
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

// places[0, found) = those of `count` sums that are to be made again, at most `room` of them; gives how many there are.
struct Small {
  FASTLRP_INLINE static void run(const float* y, const float* divided, int64_t count, float most, int64_t* places,
                                 int64_t room, int64_t* found) {
    constexpr int64_t lanes = kWinogradLanes;
    int64_t number = 0;
    for (int64_t first = 0; first < count; first += lanes) {
      int32_t any = 0;
      for (int64_t i = 0; i < lanes; ++i) {
        const float above = divided[first + i], size = above < 0.0f ? -above : above;
        any |= static_cast<int32_t>(above != 0.0f) & static_cast<int32_t>(!(size <= most * y[first + i]));
      }
      for (int64_t i = first; any != 0 && i < first + lanes; ++i) {
        const float size = divided[i] < 0.0f ? -divided[i] : divided[i];
        if (divided[i] != 0.0f && !(size <= most * y[i])) {
          if (number < room) {
            places[number] = i;
          }
          ++number;
        }
      }
    }
    *found = number;
  }
};

// One sum, 16 partial ones side by side.
struct Plain {
  FASTLRP_INLINE static void run(const WinogradRepair* p, const float* x, int64_t place, float* y) {
    constexpr int64_t lanes = kWinogradLanes, taps = kWinogradTaps;
    const int64_t output = place % p->outputs, position = place / p->outputs;
    const int64_t top = position / p->out_width - p->top, left = position % p->out_width - p->left;
    const float* weight = p->weight + output * taps * taps * p->inputs;
    float found[lanes] = {};
    for (int64_t a = std::max<int64_t>(0, -top); a < std::min(taps, p->height - top); ++a) {
      for (int64_t b = std::max<int64_t>(0, -left); b < std::min(taps, p->width - left); ++b) {
        const float* row = x + ((top + a) * p->width + left + b) * p->inputs;
        const float* matrix = weight + (a * taps + b) * p->inputs;
        for (int64_t c = 0; c < p->inputs; c += lanes) {
          for (int64_t i = 0; i < lanes; ++i) {
            found[i] += row[c + i] * matrix[c + i];
          }
        }
      }
    }
    float sum = p->bias == nullptr ? 0.0f : p->bias[output];
    for (int64_t i = 0; i < lanes; ++i) {
      sum += found[i];
    }
    y[place] = sum;
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

// `sums`: of one sample, with zeros around them up to whole tiles.
bool even_map(const Winograd& p, const std::vector<float>& sums, int64_t width, float most) {
  constexpr int64_t out = kWinogradOut;
  for (int64_t top = 0; top < p.out_height; top += out) {
    for (int64_t left = 0; left < p.out_width; left += out) {
      const int64_t rows = std::min(out, p.out_height - top), columns = std::min(out, p.out_width - left);
      if (!even_tile(sums.data() + top * width + left, width, rows, columns, most)) {
        return false;
      }
    }
  }
  return true;
}

}  // namespace

void winograd_even(const Winograd& p, float most, bool* even) {
  const auto along = [](int64_t length) { return (length + kWinogradOut - 1) / kWinogradOut; };
  const int64_t down = along(p.out_height), across = along(p.out_width);
  const int64_t margin = kWinogradIn - kWinogradOut;
  const int64_t height = down * kWinogradOut + margin, width = across * kWinogradOut + margin;
  const int64_t columns = std::min(p.width, width - p.left), map = p.height * p.width * p.inputs;
  std::vector<std::vector<float>> sums(p.samples);
  for (auto& each : sums) {
    each.resize(height * width);
  }
  const int64_t rows = std::min(p.height, height - p.top);
  parallel_for(p.samples * rows, 8, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t sample = i / rows, row = i % rows, at = row * p.width * p.inputs;
      const float* scale = p.scale == nullptr ? nullptr : p.scale + sample / p.targets * map + at;
      run_best<Held>(p.x + sample * map + at, scale, columns, p.inputs,
                     sums[sample].data() + (row + p.top) * width + p.left);
    }
  });
  for (int64_t sample = 0; sample < p.samples; ++sample) {
    even[sample] = even_map(p, sums[sample], width, most);
  }
}

void winograd_repair(const WinogradRepair& p, bool* kept) {
  const int64_t count = p.out_height * p.out_width * p.outputs, room = count / kRepaired;
  std::vector<int64_t> places(room);
  for (int64_t sample = 0; sample < p.samples; ++sample) {
    float* y = p.y + sample * count;
    const float* x = p.x + sample * p.height * p.width * p.inputs;
    int64_t found = 0;
    run_best<Small>(y, p.divided + sample * count, count, p.most, places.data(), room, &found);
    kept[sample] = found <= room;
    if (kept[sample]) {
      parallel_for(found, 64, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          run_best<Plain>(&p, x, places[i], y);
        }
      });
    }
  }
}

}  // namespace fastlrp::cpu
