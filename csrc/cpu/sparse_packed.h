// What a tile reads: the rows u[p, o] F[p, o] of all output positions p in its reach, one behind the other.
#pragma once

#include "sparse_tile.h"

#if defined(__GNUC__) || defined(__clang__)
#define FASTLRP_PREFETCH(address) __builtin_prefetch(address, 0, 2)
#else
#define FASTLRP_PREFETCH(address) static_cast<void>(address)
#endif

namespace fastlrp::cpu {

// The output positions in a tile's reach, in order: visit(position, its number in the box, its distance to the box's
// left edge).
template <class T, class Number, class Visit>
void each_in_reach(const Tile<T, Number>& tile, const Visit& visit) {
  const Window& w = tile.plan.p.window;
  const Range(&box)[3] = tile.box;
  int64_t number = 0;
  for (int64_t a = box[0].begin; a < box[0].end; ++a) {
    for (int64_t y = box[1].begin; y < box[1].end; ++y) {
      for (int64_t x = box[2].begin; x < box[2].end; ++x) {
        visit(((tile.batch * w.out[0] + a) * w.out[1] + y) * w.out[2] + x, number++, x - box[2].begin);
      }
    }
  }
}

// Asks for rows that will be read soon. Those below a max-pool have only been given other places: they lie anywhere in
// memory, each a wait of its own that the processor does not foresee. Inline: GCC leaves out calls of functions that
// only prefetch.
template <class T>
FASTLRP_INLINE void fetch_ahead(const Rows<T>& source, Range entries, const Panel& panel) {
  constexpr int64_t kAhead = 32, kLine = 64 / sizeof(T);
  if (source.rows == nullptr) {
    return;
  }
  const int64_t all = source.pattern.offsets[source.pattern.positions];
  for (int64_t e = entries.begin + kAhead; e < std::min(entries.end + kAhead, all); ++e) {
    for (int64_t k = 0; k < panel.valid; k += kLine) {
      FASTLRP_PREFETCH(source.row(e) + panel.first + k);
    }
  }
}

template <class T, class Number>
struct Packed {
  const Plan<T, Number>& plan;
  int64_t count = 0;      // rows of one product
  Buffer<T> values;       // (products, count, width)
  Buffer<int32_t> row;    // (count): where an entry's row of the weight begins in its block
  Buffer<int64_t> first;  // (box, blocks + 1): where the entries of a block begin

  explicit Packed(const Plan<T, Number>& of) : plan(of) {}

  const T* of_product(size_t product, int64_t width) const {
    return values.get() + static_cast<int64_t>(product) * count * width;
  }

  void take(const Tile<T, Number>& tile, const Panel& panel) {
    const auto& p = plan.p;
    const Blocks& blocks = plan.blocks;
    const int64_t all = plan.out_blocks(), spatial = p.window.outputs(), width = panel.width, valid = panel.valid;
    const Pattern& pattern = p.arriving.pattern;
    int64_t total = 0, places = 0;
    each_in_reach(tile, [&](int64_t at, int64_t, int64_t) {
      total += pattern.offsets[at + 1] - pattern.offsets[at];
      ++places;
    });
    const int64_t products = static_cast<int64_t>(p.products.size());
    count = total;
    T* packed = values.reserve(total * products * width);
    int32_t* rows_of_weight = row.reserve(total);
    int64_t* firsts = first.reserve(places * (all + 1));
    const int32_t step = static_cast<int32_t>(blocks.row_step);
    const int32_t shift = plan.merged ? static_cast<int32_t>(blocks.tap_step) : 0;  // see Products::by_rows
    T* scale = scale_.reserve(blocks.groups * blocks.out_channels);
    int64_t base = 0;
    each_in_reach(tile, [&](int64_t at, int64_t number, int64_t distance) {
      const int64_t inside = at - tile.batch * spatial;
      const Range entries{pattern.offsets[at], pattern.offsets[at + 1]};
      fetch_ahead(p.arriving, entries, panel);
      cut(pattern.channels, entries, plan.out_bounds, base, firsts + number * (all + 1),
          [&](int64_t to, int32_t in_block) {
            rows_of_weight[to] = in_block * step - static_cast<int32_t>(distance) * shift;
          });
      const int64_t* rows = p.arriving.rows == nullptr ? nullptr : p.arriving.rows + entries.begin;
      const T* source = p.arriving.values + panel.first + (rows ? 0 : entries.begin * p.arriving.stride);
      for (int64_t product = 0; product < products; ++product) {
        const Map<T>& coefficient = p.products[product].coefficient;
        for (int64_t e = entries.begin; e < entries.end; ++e) {
          scale[e - entries.begin] = coefficient.at(tile.batch, pattern.channels[e], inside);
        }
        if (p.other.data != nullptr) {
          select(tile.batch, pattern.channels, entries, inside, scale, rows_of_weight + base);
        }
        plan.kernel.scale_rows(width, valid, entries.size(), source, p.arriving.stride, rows, scale,
                               packed + (base + product * total) * width, width);
      }
      base += entries.size();
    });
  }

 private:
  // Entries that take the other weight: rows of it instead.
  void select(int64_t batch, const int32_t* channels, Range entries, int64_t inside, T* scale, int32_t* rows) const {
    for (int64_t e = 0; e < entries.size(); ++e) {
      const T other = plan.p.other.at(batch, channels[entries.begin + e], inside);
      // Not by their product, which can be too small to have a sign.
      if ((scale[e] < T(0) && other > T(0)) || (scale[e] > T(0) && other < T(0))) {
        scale[e] += other;
        rows[e] += plan.other_offset;
      }
    }
  }

  Buffer<T> scale_;  // of one position's entries
};

}  // namespace fastlrp::cpu
