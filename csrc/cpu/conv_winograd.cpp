#include "conv_winograd.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "../common/memory.h"
#include "../common/parallel.h"
#include "conv_winograd_alike.h"
#include "conv_winograd_kernel.h"
#include "conv_winograd_levels.h"

namespace fastlrp::cpu {
namespace {

// Each weight's 36 parts G g G^T, in float64 and rounded once.
constexpr double kOfWeight[6][3] = {{1, 0, 0},
                                    {1. / 3, 1. / 3, 1. / 3},
                                    {-1. / 3, 1. / 3, -1. / 3},
                                    {-8. / 15, -4. / 15, -2. / 15},
                                    {2. / 15, -4. / 15, 8. / 15},
                                    {0, 0, 1}};

// Numbers that a block of tiles keeps, inputs and sums. Each block reads all weights, which for 512 channels come from
// memory: 8 MB of them cost less than a second block (28x28, caches cold: 5.5 ms, with 1.6 MB 7.0; one core, AMD EPYC).
constexpr int64_t kBlock = 2048 * 1024;

int64_t along(int64_t length) { return (length + kWinogradOut - 1) / kWinogradOut; }

// Where each place of all samples takes its numbers from, and the tiles of which some place is not copied, those with
// dark windows beside bright places several times.
struct Order {
  std::vector<int32_t> first;
  std::vector<WinogradTile> tiles;

  explicit Order(const Winograd& p) {
    for (int64_t sample = 0; sample < p.samples; ++sample) {
      const WinogradAlike alike = winograd_alike(p, sample);
      winograd_levels(p, sample, alike, tiles);
      first.insert(first.end(), alike.first.begin(), alike.first.end());
    }
  }

  void copy(const Winograd& p) const {
    const int64_t places = p.out_height * p.out_width;
    parallel_for(p.samples * places, 256, [&](int64_t begin, int64_t end) {
      for (int64_t place = begin; place < end; ++place) {
        const int64_t from = place / places * places + first[place];
        if (from != place) {
          std::copy_n(p.y + from * p.outputs, p.outputs, p.y + place * p.outputs);
        }
      }
    });
  }
};

}  // namespace

void winograd_convolution(const Winograd& p) {
  std::optional<Order> order;
  if (p.alike) {
    order.emplace(p);
  }
  const int64_t tiles =
      order ? static_cast<int64_t>(order->tiles.size()) : p.samples * along(p.out_height) * along(p.out_width);
  if (tiles == 0) {
    return;
  }
  const WinogradTile* list = order ? order->tiles.data() : nullptr;
  // Whole groups of rows of the kernel, and as equal blocks as they can be.
  const int64_t most =
      std::clamp<int64_t>(kBlock / (kWinogradParts * (p.inputs + p.outputs)) / 6 * 6, 24, kWinogradMost);
  const int64_t blocks = std::max((tiles + most - 1) / most, std::min(tiles, thread_count()));
  const int64_t each = (tiles + blocks - 1) / blocks;
  const WinogradTiles run = winograd_tiles();
  parallel_for(blocks, 1, [&](int64_t begin, int64_t end) {
    // Not a power of two apart, which would put all parts of a tile into the same lines of the cache.
    const int64_t in_step = each * p.inputs + kWinogradLanes, out_step = each * p.outputs + kWinogradLanes;
    BufferPool& pool = BufferPool::shared();
    float* room = static_cast<float*>(pool.acquire(kWinogradParts * (in_step + out_step) * sizeof(float)));
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * each, count = std::min(each, tiles - first);
      if (count > 0) {
        run(p, list, first, count, room, in_step, room + kWinogradParts * in_step, out_step);
      }
    }
    pool.release(room);
  });
  if (order) {
    order->copy(p);
  }
}

void winograd_pack(int64_t outputs, int64_t inputs, const float* weight, bool turned, float* packed) {
  constexpr int64_t taps = kWinogradTaps, square = taps * taps;
  parallel_for(outputs, 8, [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o) {
      const int64_t panel = o / kPanel * kPanel;
      for (int64_t i = 0; i < inputs; ++i) {
        const float* g = weight + (turned ? i * outputs + o : o * inputs + i) * square;
        double half[kWinogradIn][taps];
        for (int64_t a = 0; a < kWinogradIn; ++a) {
          for (int64_t c = 0; c < taps; ++c) {
            half[a][c] = 0;
            for (int64_t r = 0; r < taps; ++r) {
              half[a][c] += kOfWeight[a][r] * g[turned ? square - 1 - (r * taps + c) : r * taps + c];
            }
          }
        }
        for (int64_t part = 0; part < kWinogradParts; ++part) {
          double sum = 0;
          for (int64_t c = 0; c < taps; ++c) {
            sum += half[part / kWinogradIn][c] * kOfWeight[part % kWinogradIn][c];
          }
          packed[(part * outputs + panel) * inputs + i * kPanel + o - panel] = static_cast<float>(sum);
        }
      }
    }
  });
}

}  // namespace fastlrp::cpu
