// Which part of a product is computed at once, and what of the layer's input is in it.
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "../common/parallel.h"
#include "sparse.h"
#include "sparse_kernel.h"
#include "sparse_pairs_kernel.h"
#include "sparse_window.h"

namespace fastlrp::cpu {

constexpr int64_t kPanel = 64;               // targets at once, a multiple of kLanes
constexpr int64_t kPackedBytes = 768 << 10;  // what a tile packs should stay in a second-level cache
constexpr int64_t kTileWidth = 28;           // positions along the last axis
constexpr int64_t kItemsPerThread = 6;       // below it the balance between threads suffers

struct Tiling {
  int64_t rows, width;              // positions of a tile along the last two axes
  int64_t tiles_y, tiles_x, tiles;  // in all, batch and first axis included
  int64_t parts;                    // pieces of the input blocks, where there are few tiles
};

inline bool is_depthwise(const Blocks& blocks) {
  return blocks.out_channels == 1 && blocks.in_channels == 1 && blocks.groups > 1;
}

template <class T, class Number>
Tiling make_tiling(const SparseConv<T, Number>& p, int64_t width) {
  const Window& w = p.window;
  const int64_t positions = std::max<int64_t>(1, p.arriving.pattern.positions);
  const int64_t entries = p.arriving.pattern.offsets[p.arriving.pattern.positions];
  const double bytes = static_cast<double>(entries) / positions * width * sizeof(Number) * p.products.size();
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

// The first channel of each block, and behind them how many channels there are.
inline std::vector<int32_t> block_bounds(int64_t groups, int64_t channels, int64_t block) {
  std::vector<int32_t> bounds;
  for (int64_t group = 0; group < groups; ++group) {
    for (int64_t first = 0; first < channels; first += block) {
      bounds.push_back(static_cast<int32_t>(group * channels + first));
    }
  }
  bounds.push_back(static_cast<int32_t>(groups * channels));
  return bounds;
}

// What multiplies: numbers of T as they are, or pairs of bfloat16.
template <class T, class Number>
struct Product {
  Multiply<T, Number> multiply_add;
  void (*begin)();
  void (*end)();
};

template <class T, class Number>
Product<T, Number> product_for(bool tiles) {
  if constexpr (std::is_same_v<Number, Bf16>) {
    const PairsKernel kernel = pairs_kernel(tiles);
    return {kernel.multiply_add, kernel.begin, kernel.end};
  } else {
    return {sparse_kernel<T>().multiply_add, nullptr, nullptr};
  }
}

// What all tiles of a product share.
template <class T, class Number>
struct Plan {
  const SparseConv<T, Number>& p;
  Reach reach[3];
  Tiling tiling;
  SparseKernel<T> kernel = sparse_kernel<T>();
  Product<T, Number> product;
  bool depthwise;  // one channel per group: they are taken for one block of all channels
  bool merged;     // the taps along the last axis in one sum
  Blocks blocks;
  std::vector<int32_t> out_bounds, in_bounds;
  int32_t other_offset = 0;

  explicit Plan(const SparseConv<T, Number>& of)
      : p(of),
        reach{{of.window, 0}, {of.window, 1}, {of.window, 2}},
        tiling(make_tiling(of, std::min(kPanel, (of.targets + kLanes - 1) / kLanes * kLanes))),
        product(product_for<T, Number>(of.blocks.has_tiles)),
        depthwise(is_depthwise(of.blocks)) {
    const int64_t groups = p.blocks.groups;
    const Window& w = p.window;
    merged = groups == 1 && p.blocks.out_blocks() == 1 && !w.transposed && w.stride[2] == 1 && w.dilation[2] == 1;
    blocks = depthwise ? Blocks{1, groups, groups, groups, groups, 0, 0, 0, groups} : p.blocks;
    if (p.other.data != nullptr) {
      other_offset = static_cast<int32_t>(p.other_weight - p.products.front().weight);
    }
    out_bounds = block_bounds(blocks.groups, blocks.out_channels, blocks.block_out);
    in_bounds = block_bounds(blocks.groups, blocks.in_channels, blocks.block_in);
  }

  int64_t in_blocks() const { return blocks.groups * blocks.in_blocks(); }
  int64_t out_blocks() const { return blocks.groups * blocks.out_blocks(); }
};

// The targets [first, first + width) of which `valid` exist.
struct Panel {
  int64_t first, width, valid;

  Panel(int64_t first_, int64_t targets)
      : first(first_),
        width(std::min(kPanel, (targets + kLanes - 1) / kLanes * kLanes - first_)),
        valid(std::max<int64_t>(0, std::min(width, targets - first_))) {}
};

// Entries of each position by block: first[block], and each entry's place in its block. `bounds` are the blocks'
// first channels.
template <class Local>
void cut(const int32_t* channels, Range entries, const std::vector<int32_t>& bounds, int64_t base, int64_t* first,
         Local&& local) {
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

// Some positions of one sample's input that lie side by side, and some of the input's blocks of channels.
template <class T, class Number>
struct Tile {
  const Plan<T, Number>& plan;
  Range parts{0, 0}, ys{0, 0}, xs{0, 0};
  Range box[3] = {{0, 0}, {0, 0}, {0, 0}};  // the output positions in reach
  int64_t batch = 0, depth = 0;
  int64_t rows = 0;        // entries of all positions
  Buffer<int32_t> column;  // (rows): where an entry's column of the weight begins in its block
  Buffer<int64_t> first;   // (positions, blocks + 1): where the entries of a block begin
  Buffer<int64_t> start;   // (positions): where the rows begin, in the result or in the tile's own sums

  explicit Tile(const Plan<T, Number>& of) : plan(of) {}

  void take(int64_t item) {
    const Tiling& tiling = plan.tiling;
    const Window& w = plan.p.window;
    const int64_t part = item % tiling.parts, tile = item / tiling.parts, all = plan.in_blocks();
    parts = plan.depthwise ? Range{0, 1} : Range{all * part / tiling.parts, all * (part + 1) / tiling.parts};
    const int64_t x = tile % tiling.tiles_x, rest = tile / tiling.tiles_x, y = rest % tiling.tiles_y;
    batch = rest / tiling.tiles_y / w.in[0];
    depth = rest / tiling.tiles_y % w.in[0];
    ys = {y * tiling.rows, std::min(w.in[1], (y + 1) * tiling.rows)};
    xs = {x * tiling.width, std::min(w.in[2], (x + 1) * tiling.width)};
    box[0] = plan.reach[0].outputs(w.taps[0], {depth, depth + 1});
    box[1] = plan.reach[1].outputs(w.taps[1], ys);
    box[2] = plan.reach[2].outputs(w.taps[2], xs);
    list_inputs();
  }

  int64_t positions() const { return ys.size() * xs.size(); }
  int64_t input(int64_t y, int64_t x) const {
    const Window& w = plan.p.window;
    return ((batch * w.in[0] + depth) * w.in[1] + y) * w.in[2] + x;
  }
  int64_t index(int64_t y, int64_t x) const { return (y - ys.begin) * xs.size() + x - xs.begin; }
  int64_t box_index(int64_t a, int64_t y, int64_t x) const {
    return ((a - box[0].begin) * box[1].size() + y - box[1].begin) * box[2].size() + x - box[2].begin;
  }
  // Where the entries of a position's blocks begin.
  const int64_t* blocks_of(int64_t i) const { return first.get() + i * (plan.in_blocks() + 1); }

 private:
  void list_inputs() {
    const Pattern& leaving = plan.p.leaving;
    const int64_t all = plan.in_blocks();
    const int32_t step = static_cast<int32_t>(plan.blocks.column_step);
    int64_t total = 0;
    for (int64_t y = ys.begin; y < ys.end; ++y) {
      total += leaving.offsets[input(y, xs.end - 1) + 1] - leaving.offsets[input(y, xs.begin)];
    }
    int32_t* columns = column.reserve(total);
    int64_t* firsts = first.reserve(positions() * (all + 1));
    int64_t* starts = start.reserve(positions());
    int64_t base = 0;
    for (int64_t y = ys.begin; y < ys.end; ++y) {
      for (int64_t x = xs.begin; x < xs.end; ++x) {
        const int64_t q = input(y, x), i = index(y, x);
        const Range entries{leaving.offsets[q], leaving.offsets[q + 1]};
        starts[i] = plan.p.dense ? base : entries.begin;
        cut(leaving.channels, entries, plan.in_bounds, base, firsts + i * (all + 1),
            [&](int64_t at, int32_t in_block) { columns[at] = in_block * step; });
        base += entries.size();
      }
    }
    rows = base;
  }
};

}  // namespace fastlrp::cpu
