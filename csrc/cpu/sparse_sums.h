// Where a tile's sums are kept, what they begin with, and how they come into a dense result.
#pragma once

#include <cstring>

#include "sparse_tile.h"

namespace fastlrp::cpu {

template <class T, class Number>
struct Sums {
  const Plan<T, Number>& plan;
  const Tile<T, Number>& tile;
  int64_t stride = 0;
  Buffer<bool> fresh;  // (positions): whether nothing was added to the sums of the block at work

  Sums(const Plan<T, Number>& of, const Tile<T, Number>& at) : plan(of), tile(at) {}

  // The rows of a position, `stride` elements apart: of the result, or of the tile's own sums.
  T* rows_of(int64_t i) const { return base_ + tile.start.get()[i] * stride; }

  void begin(const Panel& panel) {
    const auto& p = plan.p;
    base_ = p.dense ? own_.reserve(tile.rows * panel.width) : p.result + panel.first;
    stride = p.dense ? panel.width : p.result_stride;
    if (!p.initial.empty()) {
      begin_with(p.initial.front(), panel);
    }
  }

  bool* all_fresh() {
    bool* flags = fresh.reserve(tile.positions());
    std::fill(flags, flags + tile.positions(), plan.p.initial.empty());
    return flags;
  }

  // Every sum of a block to zero where no tap reached it.
  void clear_untouched(int64_t in_block, const Panel& panel) const {
    const int64_t positions = tile.positions();
    const size_t bytes = panel.width * sizeof(T);
    for (int64_t i = 0; i < positions; ++i) {
      if (!fresh.get()[i]) {
        continue;
      }
      const int64_t* in = tile.blocks_of(i);
      T* row = rows_of(i) + (in[in_block] - in[0]) * stride;
      for (int64_t e = in[in_block]; e < in[in_block + 1]; ++e, row += stride) {
        std::memset(row, 0, bytes);
      }
    }
  }

  // Row by row of positions and channel by channel, so that what is written lies side by side: targets are a whole map
  // apart, which often is a multiple of what caches tell apart.
  void write_dense(const Panel& panel) {
    const auto& p = plan.p;
    const Blocks& blocks = plan.blocks;
    const Range &ys = tile.ys, &xs = tile.xs;
    const int64_t spatial = p.window.inputs(), count = xs.size();
    const int64_t folds = blocks.groups * blocks.in_channels / p.channels;
    const Range mine = folds > 1 || plan.depthwise
                           ? Range{0, p.channels}
                           : Range{plan.in_bounds[tile.parts.begin], plan.in_bounds[tile.parts.end]};
    const T** found = found_.reserve(count * folds);
    T* nothing = nothing_.reserve(panel.width);
    std::fill(nothing, nothing + panel.width, T(0));
    T* scale = scale_.reserve(count * folds);
    int64_t* next = matched_.reserve(count * folds);
    for (int64_t y = ys.begin; y < ys.end; ++y) {
      for (int64_t i = 0; i < count * folds; ++i) {
        next[i] =
            first_entry(tile.input(y, xs.begin + i % count), static_cast<int32_t>(i / count * p.channels + mine.begin));
      }
      const int64_t inside = tile.input(y, xs.begin) - tile.batch * spatial;
      for (int64_t c = mine.begin; c < mine.end; ++c) {
        int64_t terms = 1;  // per position: one if never two folds meet, as where the sign picks one
        for (int64_t i = 0; i < count * folds; ++i) {
          const int64_t x = i % count, fold = i / count, q = tile.input(y, xs.begin + x);
          const int64_t* first = tile.blocks_of(tile.index(y, xs.begin + x));
          const bool here = next[i] < p.leaving.offsets[q + 1] && p.leaving.channels[next[i]] == fold * p.channels + c;
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
            found[place] = here ? own_.get() + (first[0] + next[i] - p.leaving.offsets[q]) * panel.width : nothing;
            scale[place] = p.factors.empty() ? T(1) : p.factors[fold].at(tile.batch, c, inside + x);
          }
          next[i] += here;
        }
        T* to = p.result + tile.batch * p.dense_batch + panel.first * p.dense_target + c * p.dense_channel +
                inside * p.dense_position;
        for (int64_t k = 0; k < panel.valid; ++k, to += p.dense_target) {
          for (int64_t x = 0; x < count; ++x) {
            T total = scale[x] * found[x][k];
            for (int64_t fold = 1; fold < terms; ++fold) {
              total += scale[x + fold * count] * found[x + fold * count][k];
            }
            to[x * p.dense_position] = total;
          }
        }
      }
    }
  }

 private:
  // What another register holds for the same neurons.
  void begin_with(const Summand<T>& summand, const Panel& panel) {
    const auto& p = plan.p;
    const int64_t spatial = p.window.inputs();
    const Pattern& theirs = summand.source.pattern;
    T* scale = scale_.reserve(plan.blocks.groups * plan.blocks.in_channels);
    int64_t* rows = matched_.reserve(plan.blocks.groups * plan.blocks.in_channels);
    for (int64_t y = tile.ys.begin; y < tile.ys.end; ++y) {
      for (int64_t x = tile.xs.begin; x < tile.xs.end; ++x) {
        const int64_t i = tile.index(y, x), q = tile.input(y, x), inside = q - tile.batch * spatial;
        const int64_t* in = tile.blocks_of(i);
        const int64_t skip = in[tile.parts.begin] - in[0], count = in[tile.parts.end] - in[tile.parts.begin];
        const int32_t* channels = p.leaving.channels + p.leaving.offsets[q] + skip;
        int64_t s = theirs.offsets[q];
        const int64_t end = theirs.offsets[q + 1];
        for (int64_t e = 0; e < count; ++e) {
          while (s < end && theirs.channels[s] < channels[e]) {
            ++s;
          }
          const bool found = s < end && theirs.channels[s] == channels[e];
          rows[e] = found ? (summand.source.rows == nullptr ? s : summand.source.rows[s]) : -1;
          scale[e] = summand.factor.data == nullptr ? T(1) : summand.factor.at(tile.batch, channels[e], inside);
        }
        plan.kernel.scale_rows(panel.width, panel.valid, count, summand.source.values + panel.first,
                               summand.source.stride, rows, scale, rows_of(i) + skip * stride, stride);
      }
    }
  }

  // The first entry of a position at or after a channel.
  int64_t first_entry(int64_t q, int32_t channel) const {
    const int32_t* begin = plan.p.leaving.channels + plan.p.leaving.offsets[q];
    const int32_t* end = plan.p.leaving.channels + plan.p.leaving.offsets[q + 1];
    return plan.p.leaving.offsets[q] + (std::lower_bound(begin, end, channel) - begin);
  }

  T* base_ = nullptr;
  Buffer<T> own_;  // of a dense result: (rows of the tile, width)
  Buffer<T> scale_, nothing_;
  Buffer<int64_t> matched_;
  Buffer<const T*> found_;
};

}  // namespace fastlrp::cpu
