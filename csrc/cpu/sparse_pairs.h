// What a tile reads, as pairs of bfloat16: the rows u[p, o] F[p, o] of all output positions p in its reach, multiplied
// in float32 and rounded once. Each block of a position begins a pair; where it has an odd number of entries, the last
// one's partner is a row of zeros.
#pragma once

#include "sparse_packed.h"

namespace fastlrp::cpu {

template <>
struct Packed<float, Bf16> {
  const Plan<float, Bf16>& plan;
  int64_t count = 0;      // rows of one product that there is room for
  Buffer<Bf16> values;    // (products, count / 2, width, 2)
  Buffer<int32_t> row;    // (count): where an entry's row of the weight begins in its block
  Buffer<int64_t> first;  // (box, blocks + 1): where the entries of a block begin

  explicit Packed(const Plan<float, Bf16>& of) : plan(of) {}

  const Bf16* of_product(size_t product, int64_t width) const {
    return values.get() + static_cast<int64_t>(product) * count * width;
  }

  void take(const Tile<float, Bf16>& tile, const Panel& panel) {
    const auto& p = plan.p;
    const int64_t all = plan.out_blocks(), products = static_cast<int64_t>(p.products.size());
    const Pattern& pattern = p.arriving.pattern;
    count = 0;
    int64_t most = 0, places = 0;
    each_in_reach(tile, [&](int64_t at, int64_t, int64_t) {
      const int64_t entries = pattern.offsets[at + 1] - pattern.offsets[at];
      count += entries + std::min(entries, all);
      most = std::max(most, entries);
      ++places;
    });
    count = (count + 1) / 2 * 2;
    values.reserve(count * products * panel.width);
    row.reserve(count);
    first.reserve(places * (all + 1));
    entry_.reserve(most + std::min(most, all));
    rows_.reserve(most + std::min(most, all));
    scale_.reserve(most + std::min(most, all));
    int64_t base = 0;
    each_in_reach(tile, [&](int64_t at, int64_t number, int64_t distance) {
      fetch_ahead(p.arriving, {pattern.offsets[at], pattern.offsets[at + 1]}, panel);
      const int32_t shift = plan.merged ? static_cast<int32_t>(distance * plan.blocks.tap_step) : 0;
      const int64_t filled = list(at, base, shift, first.get() + number * (all + 1));
      for (int64_t product = 0; product < products; ++product) {
        scale(tile.batch, at - tile.batch * p.window.outputs(), product, filled, row.get() + base);
        scale_pairs(panel.width, panel.valid, filled, p.arriving.values + panel.first, p.arriving.stride, rows_.get(),
                    scale_.get(), values.get() + (base + product * count) * panel.width);
      }
      base += filled;
    });
  }

 private:
  // A position's entries in pairs: how many, partners that only fill up included.
  int64_t list(int64_t at, int64_t base, int32_t shift, int64_t* firsts) {
    const Pattern& pattern = plan.p.arriving.pattern;
    const std::vector<int32_t>& bounds = plan.out_bounds;
    const int64_t* source = plan.p.arriving.rows;
    const int32_t step = static_cast<int32_t>(plan.blocks.row_step);
    int64_t e = pattern.offsets[at], filled = 0;
    const int64_t end = pattern.offsets[at + 1];
    int32_t* of_weight = row.get() + base;
    for (size_t block = 0; block + 1 < bounds.size(); ++block) {
      firsts[block] = base + filled;
      for (; e < end && pattern.channels[e] < bounds[block + 1]; ++e, ++filled) {
        of_weight[filled] = (pattern.channels[e] - bounds[block]) * step - shift;
        entry_.get()[filled] = e;
        rows_.get()[filled] = source == nullptr ? e : source[e];
      }
      if (filled % 2 != 0) {
        of_weight[filled] = of_weight[filled - 1];
        entry_.get()[filled] = -1;
        rows_.get()[filled++] = -1;
      }
    }
    firsts[bounds.size() - 1] = base + filled;
    return filled;
  }

  // What each entry is multiplied with; those that take the other weight get rows of it instead.
  void scale(int64_t batch, int64_t inside, int64_t product, int64_t filled, int32_t* of_weight) {
    const auto& p = plan.p;
    const int32_t* channels = p.arriving.pattern.channels;
    const Map<float>& coefficient = p.products[product].coefficient;
    float* scales = scale_.get();
    for (int64_t i = 0; i < filled; ++i) {
      const int64_t e = entry_.get()[i];
      if (e < 0) {
        scales[i] = 0;
        of_weight[i] = of_weight[i - 1];
        continue;
      }
      scales[i] = coefficient.at(batch, channels[e], inside);
      if (p.other.data != nullptr) {
        const float other = p.other.at(batch, channels[e], inside);
        if ((scales[i] < 0 && other > 0) || (scales[i] > 0 && other < 0)) {
          scales[i] += other;
          of_weight[i] += plan.other_offset;
        }
      }
    }
  }

  // Of one position's entries.
  Buffer<int64_t> entry_, rows_;
  Buffer<float> scale_;
};

}  // namespace fastlrp::cpu
