// Relevance through a convolution (or a linear layer: one position) for alive neurons on both sides only.
//
// Work is cut into tiles of input positions. A tile first packs what it reads: the alive rows of all output positions
// in reach, multiplied by their coefficient, for up to kPanel targets. Then it goes over blocks of the weight that fit
// into the first-level cache and multiplies each with all of the tile's positions.

#include <algorithm>
#include <atomic>
#include <cstring>

#include "../common/parallel.h"
#include "sparse.h"
#include "sparse_kernel.h"
#include "sparse_window.h"

namespace fastlrp::cpu {
namespace {

constexpr int64_t kPanel = 64;               // targets at once, a multiple of kLanes
constexpr int64_t kPackedBytes = 768 << 10;  // what a tile packs should stay in a second-level cache
constexpr int64_t kTileWidth = 28;           // positions along the last axis
constexpr int64_t kThin = 3;                 // with fewer entries per input position, output by output
constexpr int64_t kItemsPerThread = 6;       // below it the balance between threads suffers

struct Tiling {
  int64_t rows, width;              // positions of a tile along the last two axes
  int64_t tiles_y, tiles_x, tiles;  // in all, batch and first axis included
  int64_t parts;                    // pieces of the input blocks, where there are few tiles
};

bool is_depthwise(const Blocks& blocks) {
  return blocks.out_channels == 1 && blocks.in_channels == 1 && blocks.groups > 1;
}

template <class T>
Tiling make_tiling(const SparseConv<T>& p, int64_t width) {
  const Window& w = p.window;
  const int64_t positions = std::max<int64_t>(1, p.arriving.pattern.positions);
  const int64_t entries = p.arriving.pattern.offsets[p.arriving.pattern.positions];
  const double bytes = static_cast<double>(entries) / positions * width * sizeof(T) * p.products.size();
  const auto span = [&](int axis, int64_t count) {
    const int64_t reach = count + (w.taps[axis] - 1) * w.dilation[axis];
    return w.transposed ? reach * w.stride[axis] : (reach + w.stride[axis] - 1) / w.stride[axis];
  };
  const auto packed = [&](int64_t rows, int64_t cols) {
    return bytes * span(0, 1) * std::min(span(1, rows), w.out[1]) * std::min(span(2, cols), w.out[2]);
  };
  Tiling t;
  t.width = std::max<int64_t>(1, w.in[2]);
  if (t.width > kTileWidth) {
    const int64_t pieces = (t.width + kTileWidth - 1) / kTileWidth;
    t.width = (t.width + pieces - 1) / pieces;
  }
  t.rows = 1;
  while (t.width > 7 && packed(1, t.width) > 2 * kPackedBytes) {
    t.width = (t.width + 1) / 2;
  }
  const int64_t wanted = kItemsPerThread * thread_count();
  const auto count = [&](int64_t rows) {
    return p.batch * w.in[0] * ((w.in[1] + rows - 1) / rows) * ((w.in[2] + t.width - 1) / t.width);
  };
  while (t.rows < w.in[1] && t.rows < 16 && packed(2 * t.rows, t.width) <= kPackedBytes &&
         count(2 * t.rows) >= wanted) {
    t.rows *= 2;
  }
  t.tiles_y = (w.in[1] + t.rows - 1) / t.rows;
  t.tiles_x = (w.in[2] + t.width - 1) / t.width;
  t.tiles = p.batch * w.in[0] * t.tiles_y * t.tiles_x;
  // Parts must not add to the same dense entry, and a depthwise tile is not cut.
  const bool whole = (p.dense && p.channels < p.blocks.groups * p.blocks.in_channels) || is_depthwise(p.blocks);
  const int64_t blocks = whole ? 1 : p.blocks.groups * p.blocks.in_blocks();
  t.parts = std::min(blocks, std::max<int64_t>(1, wanted / std::max<int64_t>(1, t.tiles)));
  return t;
}

template <class T>
class Worker {
 public:
  Worker(const SparseConv<T>& p, const Reach* reach, const Tiling& tiling)
      : p_(p), reach_(reach), tiling_(tiling), kernel_(sparse_kernel<T>()) {
    depthwise_ = is_depthwise(p.blocks);
    const int64_t groups = p.blocks.groups;
    const Window& w = p.window;
    merged_ = groups == 1 && p.blocks.out_blocks() == 1 && !w.transposed && w.stride[2] == 1 && w.dilation[2] == 1;
    blocks_ = depthwise_ ? Blocks{1, groups, groups, groups, groups, 0, 0, 0, groups} : p.blocks;
    if (p.other.data != nullptr) {
      other_offset_ = static_cast<int32_t>(p.other_weight - p.products.front().weight);
    }
    out_bounds_ = block_bounds(blocks_.groups, blocks_.out_channels, blocks_.block_out);
    in_bounds_ = block_bounds(blocks_.groups, blocks_.in_channels, blocks_.block_in);
  }

  void run(int64_t item) {
    const int64_t part = item % tiling_.parts, tile = item / tiling_.parts;
    const int64_t all = blocks_.groups * blocks_.in_blocks();
    mine_ = depthwise_ ? Range{0, 1} : Range{all * part / tiling_.parts, all * (part + 1) / tiling_.parts};
    const int64_t x = tile % tiling_.tiles_x, rest = tile / tiling_.tiles_x, y = rest % tiling_.tiles_y;
    const Window& w = p_.window;
    batch_ = rest / tiling_.tiles_y / w.in[0];
    depth_ = rest / tiling_.tiles_y % w.in[0];
    ys_ = {y * tiling_.rows, std::min(w.in[1], (y + 1) * tiling_.rows)};
    xs_ = {x * tiling_.width, std::min(w.in[2], (x + 1) * tiling_.width)};
    box_[0] = reach_[0].outputs(w.taps[0], {depth_, depth_ + 1});
    box_[1] = reach_[1].outputs(w.taps[1], ys_);
    box_[2] = reach_[2].outputs(w.taps[2], xs_);
    list_inputs();
    const int64_t padded = (p_.targets + kLanes - 1) / kLanes * kLanes;
    for (int64_t first = 0; first < padded; first += kPanel) {
      width_ = std::min(kPanel, padded - first);
      pack(first);
      if (p_.dense) {
        sums_.reserve(rows_ * width_);
      }
      if (!p_.initial.empty()) {
        begin_with(p_.initial.front(), first);
      }
      depthwise_ ? multiply_depthwise(first) : multiply(first);
      if (p_.dense) {
        write_dense(first);
      }
    }
  }

 private:
  int64_t input(int64_t y, int64_t x) const {
    const Window& w = p_.window;
    return ((batch_ * w.in[0] + depth_) * w.in[1] + y) * w.in[2] + x;
  }
  int64_t tile_index(int64_t y, int64_t x) const { return (y - ys_.begin) * xs_.size() + x - xs_.begin; }
  int64_t box_index(int64_t a, int64_t y, int64_t x) const {
    return ((a - box_[0].begin) * box_[1].size() + y - box_[1].begin) * box_[2].size() + x - box_[2].begin;
  }

  // Entries of each position by block: first[block], and each entry's place in its block. `bounds` are the blocks'
  // first channels.
  template <class Local>
  static void cut(const int32_t* channels, Range entries, const std::vector<int32_t>& bounds, int64_t base,
                  int64_t* first, Local&& local) {
    const int64_t all = static_cast<int64_t>(bounds.size()) - 1;
    int64_t block = 0;
    first[0] = base;
    for (int64_t e = entries.begin; e < entries.end; ++e) {
      while (channels[e] >= bounds[block + 1]) {
        first[++block] = base + e - entries.begin;
      }
      local(base + e - entries.begin, channels[e] - bounds[block]);
    }
    while (block < all) {
      first[++block] = base + entries.size();
    }
  }

  static std::vector<int32_t> block_bounds(int64_t groups, int64_t channels, int64_t block) {
    std::vector<int32_t> bounds;
    for (int64_t group = 0; group < groups; ++group) {
      for (int64_t first = 0; first < channels; first += block) {
        bounds.push_back(static_cast<int32_t>(group * channels + first));
      }
    }
    bounds.push_back(static_cast<int32_t>(groups * channels));
    return bounds;
  }

  void list_inputs() {
    const int64_t all = blocks_.groups * blocks_.in_blocks();
    const int64_t count = ys_.size() * xs_.size();
    int64_t total = 0;
    for (int64_t y = ys_.begin; y < ys_.end; ++y) {
      total += p_.leaving.offsets[input(y, xs_.end - 1) + 1] - p_.leaving.offsets[input(y, xs_.begin)];
    }
    int32_t* column = column_.reserve(total);
    int64_t* first = in_first_.reserve(count * (all + 1));
    int64_t* start = in_start_.reserve(count);
    int64_t base = 0;
    for (int64_t y = ys_.begin; y < ys_.end; ++y) {
      for (int64_t x = xs_.begin; x < xs_.end; ++x) {
        const int64_t q = input(y, x), i = tile_index(y, x);
        const Range entries{p_.leaving.offsets[q], p_.leaving.offsets[q + 1]};
        // Where this position's rows begin: in the result, or in the tile's own buffer.
        start[i] = p_.dense ? base : entries.begin;
        cut(p_.leaving.channels, entries, in_bounds_, base, first + i * (all + 1),
            [&](int64_t at, int32_t in_block) { column[at] = in_block; });
        base += entries.size();
      }
    }
    rows_ = base;
  }

  T* rows_of(int64_t i, int64_t first_target) const {
    return p_.dense ? sums_.get() + in_start_.get()[i] * width_
                    : p_.result + in_start_.get()[i] * p_.result_stride + first_target;
  }
  int64_t row_stride() const { return p_.dense ? width_ : p_.result_stride; }

  void pack(int64_t first_target) {
    const Window& w = p_.window;
    const int64_t all = blocks_.groups * blocks_.out_blocks();
    const int64_t count = box_[0].size() * box_[1].size() * box_[2].size();
    const int64_t spatial = w.out[0] * w.out[1] * w.out[2];
    const Pattern& pattern = p_.arriving.pattern;
    const auto position = [&](int64_t a, int64_t y, int64_t x) {
      return ((batch_ * w.out[0] + a) * w.out[1] + y) * w.out[2] + x;
    };
    int64_t total = 0;
    for (int64_t a = box_[0].begin; a < box_[0].end; ++a) {
      for (int64_t y = box_[1].begin; y < box_[1].end; ++y) {
        total += pattern.offsets[position(a, y, box_[2].end - 1) + 1] - pattern.offsets[position(a, y, box_[2].begin)];
      }
    }
    const int64_t products = static_cast<int64_t>(p_.products.size());
    packed_rows_ = total;
    T* packed = packed_.reserve(total * products * width_);
    int32_t* row = row_.reserve(total);
    int64_t* first = out_first_.reserve(count * (all + 1));
    const int32_t step = static_cast<int32_t>(blocks_.row_step);
    const int32_t shift = merged_ ? static_cast<int32_t>(blocks_.tap_step) : 0;  // see by_rows
    T* scale = scale_.reserve(blocks_.groups * blocks_.out_channels);
    const int64_t valid = std::max<int64_t>(0, std::min(width_, p_.targets - first_target));
    int64_t base = 0;
    for (int64_t a = box_[0].begin; a < box_[0].end; ++a) {
      for (int64_t y = box_[1].begin; y < box_[1].end; ++y) {
        for (int64_t x = box_[2].begin; x < box_[2].end; ++x) {
          const int64_t at = position(a, y, x), inside = at - batch_ * spatial;
          const Range entries{pattern.offsets[at], pattern.offsets[at + 1]};
          cut(pattern.channels, entries, out_bounds_, base, first + box_index(a, y, x) * (all + 1),
              [&](int64_t to, int32_t in_block) {
                row[to] = in_block * step - static_cast<int32_t>(x - box_[2].begin) * shift;
              });
          const int64_t* rows = p_.arriving.rows == nullptr ? nullptr : p_.arriving.rows + entries.begin;
          const T* source = p_.arriving.values + first_target + (rows ? 0 : entries.begin * p_.arriving.stride);
          for (int64_t product = 0; product < products; ++product) {
            const Map<T>& coefficient = p_.products[product].coefficient;
            for (int64_t e = entries.begin; e < entries.end; ++e) {
              scale[e - entries.begin] = coefficient.at(batch_, pattern.channels[e], inside);
            }
            if (p_.other.data != nullptr) {
              select(pattern.channels, entries, inside, scale, row + base);
            }
            kernel_.scale_rows(width_, valid, entries.size(), source, p_.arriving.stride, rows, scale,
                               packed + (base + product * total) * width_, width_);
          }
          base += entries.size();
        }
      }
    }
  }

  // Entries that take the other weight: rows of it instead.
  void select(const int32_t* channels, Range entries, int64_t inside, T* scale, int32_t* row) {
    for (int64_t e = 0; e < entries.size(); ++e) {
      const T other = p_.other.at(batch_, channels[entries.begin + e], inside);
      // Not by their product, which can be too small to have a sign.
      if ((scale[e] < T(0) && other > T(0)) || (scale[e] > T(0) && other < T(0))) {
        scale[e] += other;
        row[e] += other_offset_;
      }
    }
  }

  // The sums of this item to what another register holds for the same neurons.
  void begin_with(const Summand<T>& summand, int64_t first_target) {
    const int64_t all = blocks_.groups * blocks_.in_blocks(),
                  spatial = p_.window.in[0] * p_.window.in[1] * p_.window.in[2];
    const int64_t valid = std::max<int64_t>(0, std::min(width_, p_.targets - first_target));
    const Pattern& theirs = summand.source.pattern;
    T* scale = scale_.reserve(std::max(blocks_.groups * blocks_.in_channels, blocks_.groups * blocks_.out_channels));
    int64_t* rows = matched_.reserve(blocks_.groups * blocks_.in_channels);
    for (int64_t y = ys_.begin; y < ys_.end; ++y) {
      for (int64_t x = xs_.begin; x < xs_.end; ++x) {
        const int64_t i = tile_index(y, x), q = input(y, x), inside = q - batch_ * spatial;
        const int64_t* in = in_first_.get() + i * (all + 1);
        const int64_t skip = in[mine_.begin] - in[0], count = in[mine_.end] - in[mine_.begin];
        const int32_t* channels = p_.leaving.channels + p_.leaving.offsets[q] + skip;
        int64_t s = theirs.offsets[q];
        const int64_t end = theirs.offsets[q + 1];
        for (int64_t e = 0; e < count; ++e) {
          while (s < end && theirs.channels[s] < channels[e]) {
            ++s;
          }
          const bool found = s < end && theirs.channels[s] == channels[e];
          rows[e] = found ? (summand.source.rows == nullptr ? s : summand.source.rows[s]) : -1;
          scale[e] = summand.factor.data == nullptr ? T(1) : summand.factor.at(batch_, channels[e], inside);
        }
        kernel_.scale_rows(width_, valid, count, summand.source.values + first_target, summand.source.stride, rows,
                           scale, rows_of(i, first_target) + skip * row_stride(), row_stride());
      }
    }
  }

  // Every sum of this item to zero where no tap reached it.
  void clear_untouched(int64_t in_block, int64_t first_target) {
    const int64_t all = blocks_.groups * blocks_.in_blocks();
    for (int64_t i = 0; i < ys_.size() * xs_.size(); ++i) {
      if (!fresh_.get()[i]) {
        continue;
      }
      const int64_t* in = in_first_.get() + i * (all + 1);
      T* row = rows_of(i, first_target) + (in[in_block] - in[0]) * row_stride();
      for (int64_t e = in[in_block]; e < in[in_block + 1]; ++e, row += row_stride()) {
        std::memset(row, 0, width_ * sizeof(T));
      }
    }
  }

  // f(tap number, out coordinates' tables) for all taps of the first axis that reach this tile.
  template <class Body>
  void over_taps(Body&& body) {
    const Window& w = p_.window;
    for (int64_t ta = 0; ta < w.taps[0]; ++ta) {
      const int64_t a = reach_[0].tap(ta)[depth_];
      if (a < 0) {
        continue;
      }
      for (int64_t ty = 0; ty < w.taps[1]; ++ty) {
        for (int64_t tx = 0; tx < w.taps[2]; ++tx) {
          body((ta * w.taps[1] + ty) * w.taps[2] + tx, a, reach_[1].tap(ty), reach_[2].tap(tx));
        }
      }
    }
  }

  void multiply(int64_t first_target) {
    const int64_t positions = ys_.size() * xs_.size();
    bool* fresh = fresh_.reserve(positions);
    if (merged_ && blocks_.in_blocks() == 1 && rows_ < kThin * positions) {
      std::fill(fresh, fresh + positions, p_.initial.empty());
      clear_untouched(0, first_target);
      for (size_t product = 0; product < p_.products.size(); ++product) {
        by_outputs(packed_.get() + static_cast<int64_t>(product) * packed_rows_ * width_, p_.products[product].weight,
                   first_target);
      }
      return;
    }
    for (int64_t in_block = mine_.begin; in_block < mine_.end; ++in_block) {
      std::fill(fresh, fresh + positions, p_.initial.empty());
      for (size_t product = 0; product < p_.products.size(); ++product) {
        const T* packed = packed_.get() + static_cast<int64_t>(product) * packed_rows_ * width_;
        const T* weights = p_.products[product].weight + in_block * blocks_.in_step;
        merged_ ? by_rows(in_block, packed, weights, first_target) : by_taps(in_block, packed, weights, first_target);
      }
      clear_untouched(in_block, first_target);
    }
  }

  void by_taps(int64_t in_block, const T* packed, const T* weights, int64_t first_target) {
    const int64_t in_all = blocks_.groups * blocks_.in_blocks(), out_all = blocks_.groups * blocks_.out_blocks();
    const int64_t group = in_block / blocks_.in_blocks();
    over_taps([&](int64_t tap, int64_t a, const int32_t* to_y, const int32_t* to_x) {
      for (int64_t b = 0; b < blocks_.out_blocks(); ++b) {
        const T* weight = weights + tap * blocks_.tap_step + b * blocks_.out_step;
        const int64_t out_block = group * blocks_.out_blocks() + b;
        for (int64_t y = ys_.begin; y < ys_.end; ++y) {
          if (to_y[y] < 0) {
            continue;
          }
          for (int64_t x = xs_.begin; x < xs_.end; ++x) {
            if (to_x[x] < 0) {
              continue;
            }
            const int64_t i = tile_index(y, x);
            const int64_t* in = in_first_.get() + i * (in_all + 1);
            const int64_t* out = out_first_.get() + box_index(a, to_y[y], to_x[x]) * (out_all + 1) + out_block;
            const int64_t left = in[in_block + 1] - in[in_block], count = out[1] - out[0];
            if (left > 0 && count > 0) {
              kernel_.multiply_add(fresh_.get()[i], width_, left, weight, row_.get() + out[0], count,
                                   packed + out[0] * width_, width_, column_.get() + in[in_block],
                                   rows_of(i, first_target) + (in[in_block] - in[0]) * row_stride(), row_stride());
              fresh_.get()[i] = false;
            }
          }
        }
      }
    });
  }

  // The taps along the last axis in one sum: with few channels each of them alone is too short to be worth a call. What
  // they read lies side by side, last tap first. Output x is joined with input q by tap q + padding - x: the rows have
  // x taken off already (counted from the tile's first output), so one list serves all inputs.
  void by_rows(int64_t in_block, const T* packed, const T* weights, int64_t first_target) {
    const Window& w = p_.window;
    const int64_t all = blocks_.in_blocks(), reach = w.taps[2] - 1;
    for (int64_t ta = 0; ta < w.taps[0]; ++ta) {
      const int64_t a = reach_[0].tap(ta)[depth_];
      for (int64_t ty = 0; a >= 0 && ty < w.taps[1]; ++ty) {
        const int32_t* to_y = reach_[1].tap(ty);
        const T* weight = weights + (ta * w.taps[1] + ty) * w.taps[2] * blocks_.tap_step;
        for (int64_t y = ys_.begin; y < ys_.end; ++y) {
          for (int64_t x = xs_.begin; to_y[y] >= 0 && x < xs_.end; ++x) {
            const int64_t i = tile_index(y, x), last = x + w.padding[2];
            const int64_t* in = in_first_.get() + i * (all + 1);
            const int64_t left = in[in_block + 1] - in[in_block];
            const Range outputs{std::max<int64_t>(0, last - reach), std::min(w.out[2], last + 1)};
            if (left == 0 || outputs.size() <= 0) {
              continue;
            }
            const int64_t begin = out_first_.get()[2 * box_index(a, to_y[y], outputs.begin)];
            const int64_t count = out_first_.get()[2 * box_index(a, to_y[y], outputs.end - 1) + 1] - begin;
            if (count > 0) {
              kernel_.multiply_add(fresh_.get()[i], width_, left, weight + (last - box_[2].begin) * blocks_.tap_step,
                                   row_.get() + begin, count, packed + begin * width_, width_,
                                   column_.get() + in[in_block],
                                   rows_of(i, first_target) + (in[in_block] - in[0]) * row_stride(), row_stride());
              fresh_.get()[i] = false;
            }
          }
        }
      }
    }
  }

  // The same sums in the same order, output by output: with few entries per input a product that ends with one input
  // waits for its own sums. Those of all inputs that an output's taps along the last axis reach lie side by side, and
  // the rows of taps in the inner loop have nothing in common. The columns have the input's place added, by_rows' rows
  // have the output's taken off.
  void by_outputs(const T* packed, const T* weights, int64_t first_target) {
    const Window& w = p_.window;
    const int64_t step = blocks_.tap_step, row = w.taps[2] * step;
    int32_t* column = shifted_.reserve(rows_);
    for (int64_t i = 0; i < ys_.size() * xs_.size(); ++i) {
      for (int64_t e = in_first_.get()[2 * i]; e < in_first_.get()[2 * i + 1]; ++e) {
        column[e] = column_.get()[e] + static_cast<int32_t>(i % xs_.size() * step);
      }
    }
    weights += (xs_.begin + w.padding[2] - box_[2].begin) * step;
    for (int64_t ta = 0; ta < w.taps[0]; ++ta) {
      const int64_t a = reach_[0].tap(ta)[depth_];
      for (int64_t out_y = box_[1].end - 1; a >= 0 && out_y >= box_[1].begin; --out_y) {
        for (int64_t out_x = box_[2].begin; out_x < box_[2].end; ++out_x) {
          const int64_t* out = out_first_.get() + 2 * box_index(a, out_y, out_x);
          const Range inputs{std::max(xs_.begin, out_x - w.padding[2]),
                             std::min(xs_.end, out_x - w.padding[2] + w.taps[2])};
          for (int64_t ty = 0; ty < w.taps[1] && inputs.size() > 0 && out[1] > out[0]; ++ty) {
            const int64_t y = out_y * w.stride[1] - w.padding[1] + ty * w.dilation[1];
            if (y < ys_.begin || y >= ys_.end) {
              continue;
            }
            const int64_t i = tile_index(y, inputs.begin), begin = in_first_.get()[2 * i];
            const int64_t left = in_first_.get()[2 * (i + inputs.size()) - 1] - begin;
            if (left > 0) {
              kernel_.multiply_add(false, width_, left, weights + (ta * w.taps[1] + ty) * row, row_.get() + out[0],
                                   out[1] - out[0], packed + out[0] * width_, width_, column + begin,
                                   rows_of(i, first_target), row_stride());
            }
          }
        }
      }
    }
  }

  // One channel per group: alive where both sides are.
  void multiply_depthwise(int64_t first_target) {
    const Window& w = p_.window;
    const int64_t taps = w.taps[0] * w.taps[1] * w.taps[2];
    const int32_t zero = 0;
    if (p_.initial.empty()) {
      bool* fresh = fresh_.reserve(ys_.size() * xs_.size());
      std::fill(fresh, fresh + ys_.size() * xs_.size(), true);
      clear_untouched(0, first_target);
    }
    for (size_t product = 0; product < p_.products.size(); ++product) {
      const T* packed = packed_.get() + static_cast<int64_t>(product) * packed_rows_ * width_;
      const T* weights = p_.products[product].weight;
      over_taps([&](int64_t tap, int64_t a, const int32_t* to_y, const int32_t* to_x) {
        for (int64_t y = ys_.begin; y < ys_.end; ++y) {
          for (int64_t x = xs_.begin; x < xs_.end; ++x) {
            if (to_y[y] < 0 || to_x[x] < 0) {
              continue;
            }
            const int64_t i = tile_index(y, x);
            const int64_t* in = in_first_.get() + 2 * i;
            const int64_t* out = out_first_.get() + 2 * box_index(a, to_y[y], to_x[x]);
            T* rows = rows_of(i, first_target);
            // One block of all channels: an entry's place in its block is its channel.
            for (int64_t e = in[0], o = out[0]; e < in[1] && o < out[1];) {
              const int64_t left = column_.get()[e], right = row_.get()[o] / blocks_.row_step;
              if (left == right) {
                kernel_.multiply_add(false, width_, 1, weights + left * taps + tap, &zero, 1, packed + o * width_,
                                     width_, &zero, rows + (e - in[0]) * row_stride(), row_stride());
              }
              e += left <= right;
              o += right <= left;
            }
          }
        }
      });
    }
  }

  // Row by row of positions and channel by channel, so that what is written lies side by side: targets are a whole map
  // apart, which often is a multiple of what caches tell apart.
  void write_dense(int64_t first_target) {
    const Window& w = p_.window;
    const int64_t all = blocks_.groups * blocks_.in_blocks(), spatial = w.in[0] * w.in[1] * w.in[2];
    const int64_t valid = std::max<int64_t>(0, std::min(width_, p_.targets - first_target)), count = xs_.size();
    const int64_t folds = blocks_.groups * blocks_.in_channels / p_.channels;
    const Range mine =
        folds > 1 || depthwise_ ? Range{0, p_.channels} : Range{in_bounds_[mine_.begin], in_bounds_[mine_.end]};
    const T** found = found_.reserve(count * folds);
    T* nothing = nothing_.reserve(width_);
    std::fill(nothing, nothing + width_, T(0));
    T* scale = scale_.reserve(std::max(count * folds, blocks_.groups * blocks_.out_channels));
    int64_t* next = matched_.reserve(count * folds);
    for (int64_t y = ys_.begin; y < ys_.end; ++y) {
      for (int64_t i = 0; i < count * folds; ++i) {
        next[i] =
            first_entry(input(y, xs_.begin + i % count), static_cast<int32_t>(i / count * p_.channels + mine.begin));
      }
      const int64_t inside = input(y, xs_.begin) - batch_ * spatial;
      for (int64_t c = mine.begin; c < mine.end; ++c) {
        int64_t terms = 1;  // per position: one if never two folds meet, as where the sign picks one
        for (int64_t i = 0; i < count * folds; ++i) {
          const int64_t x = i % count, fold = i / count, q = input(y, xs_.begin + x);
          const int64_t* first = in_first_.get() + tile_index(y, xs_.begin + x) * (all + 1);
          const bool here =
              next[i] < p_.leaving.offsets[q + 1] && p_.leaving.channels[next[i]] == fold * p_.channels + c;
          int64_t place = i;
          if (fold > 0 && terms == 1) {
            if (here && found[x] == nothing) {
              place = x;
            } else if (here) {
              std::fill(found + count, found + count * folds, nothing);
              std::fill(scale + count, scale + count * folds, T(0));
              terms = folds;
            }
          }
          if (here || fold == 0) {
            found[place] = here ? sums_.get() + (first[0] + next[i] - p_.leaving.offsets[q]) * width_ : nothing;
            scale[place] = p_.factors.empty() ? T(1) : p_.factors[fold].at(batch_, c, inside + x);
          }
          next[i] += here;
        }
        T* to = p_.result + batch_ * p_.dense_batch + first_target * p_.dense_target + c * p_.dense_channel +
                inside * p_.dense_position;
        for (int64_t k = 0; k < valid; ++k, to += p_.dense_target) {
          for (int64_t x = 0; x < count; ++x) {
            T total = scale[x] * found[x][k];
            for (int64_t fold = 1; fold < terms; ++fold) {
              total += scale[x + fold * count] * found[x + fold * count][k];
            }
            to[x * p_.dense_position] = total;
          }
        }
      }
    }
  }

  // The first entry of a position at or after a channel.
  int64_t first_entry(int64_t q, int32_t channel) const {
    const int32_t* begin = p_.leaving.channels + p_.leaving.offsets[q];
    const int32_t* end = p_.leaving.channels + p_.leaving.offsets[q + 1];
    return p_.leaving.offsets[q] + (std::lower_bound(begin, end, channel) - begin);
  }

  const SparseConv<T>& p_;
  const Reach* reach_;
  const Tiling& tiling_;
  const SparseKernel<T> kernel_;
  Blocks blocks_;
  bool depthwise_, merged_;
  int32_t other_offset_ = 0;
  Range mine_, ys_, xs_, box_[3];
  int64_t batch_, depth_, width_, rows_, packed_rows_;
  Buffer<T> packed_, sums_, scale_, nothing_;
  Buffer<int32_t> row_, column_, shifted_;
  Buffer<bool> fresh_;
  std::vector<int32_t> out_bounds_, in_bounds_;
  Buffer<int64_t> out_first_, in_first_, in_start_, matched_;
  Buffer<const T*> found_;
};

}  // namespace

template <class T>
void sparse_conv_relevance(const SparseConv<T>& p) {
  const int64_t padded = std::min(kPanel, (p.targets + kLanes - 1) / kLanes * kLanes);
  const Tiling tiling = make_tiling(p, padded);
  const int64_t items = tiling.tiles * tiling.parts;
  if (items == 0 || p.targets == 0) {
    return;
  }
  const Reach reach[3] = {{p.window, 0}, {p.window, 1}, {p.window, 2}};
  std::atomic<int64_t> next{0};
  // Tiles differ in how many neurons are alive: threads take the next one. Each result has one writer and one order.
  parallel_for(thread_count(), 1, [&](int64_t, int64_t) {
    Worker<T> worker(p, reach, tiling);
    for (int64_t item; (item = next.fetch_add(1, std::memory_order_relaxed)) < items;) {
      worker.run(item);
    }
  });
}

template void sparse_conv_relevance<float>(const SparseConv<float>&);
template void sparse_conv_relevance<double>(const SparseConv<double>&);

}  // namespace fastlrp::cpu
