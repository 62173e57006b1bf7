// The products of a tile's sums with the blocks of the weight, in four orders of loops.
#pragma once

#include "sparse_packed.h"
#include "sparse_sums.h"

namespace fastlrp::cpu {

constexpr int64_t kThin = 3;  // with fewer entries per input position, output by output

template <class T, class Number>
struct Products {
  const Plan<T, Number>& plan;
  const Tile<T, Number>& tile;
  const Packed<T, Number>& packed;
  Sums<T, Number>& sums;

  Products(const Plan<T, Number>& of, const Tile<T, Number>& at, const Packed<T, Number>& read, Sums<T, Number>& to)
      : plan(of), tile(at), packed(read), sums(to) {}

  void add(const Panel& panel) { plan.depthwise ? by_channels(panel) : by_blocks(panel); }

 private:
  // The block of the weight that comes next lies behind the one in use. Where all of them together are more than a
  // second-level cache keeps from tile to tile, each position asks for a part of it.
  struct Ahead {
    int64_t bytes = 0;  // for each position

    Ahead(const Blocks& blocks, const Window& w, int64_t positions) {
      const int64_t all = w.taps[0] * w.taps[1] * w.taps[2] * blocks.tap_step * blocks.in_blocks() * blocks.groups;
      if (all * static_cast<int64_t>(sizeof(Number)) > kKeptBytes) {
        const int64_t block = blocks.out_step * static_cast<int64_t>(sizeof(Number));
        bytes = std::min((block + positions * kLine - 1) / (positions * kLine) * kLine, kMostAhead);
      }
    }
    uintptr_t fetch(uintptr_t next) const {  // may be behind the weight
      for (int64_t at = 0; at < bytes; at += kLine) {
        FASTLRP_PREFETCH(reinterpret_cast<const void*>(next + static_cast<uintptr_t>(at)));
      }
      return next + static_cast<uintptr_t>(bytes);
    }
    static constexpr int64_t kLine = 64, kKeptBytes = 512 << 10, kMostAhead = 4096;
  };

  // f(tap number, out coordinates' tables) for all taps of the first axis that reach this tile.
  template <class Body>
  void over_taps(Body&& body) {
    const Window& w = plan.p.window;
    for (int64_t ta = 0; ta < w.taps[0]; ++ta) {
      const int64_t a = plan.reach[0].tap(ta)[tile.depth];
      if (a < 0) {
        continue;
      }
      for (int64_t ty = 0; ty < w.taps[1]; ++ty) {
        for (int64_t tx = 0; tx < w.taps[2]; ++tx) {
          body((ta * w.taps[1] + ty) * w.taps[2] + tx, a, plan.reach[1].tap(ty), plan.reach[2].tap(tx));
        }
      }
    }
  }

  void by_blocks(const Panel& panel) {
    const auto& products = plan.p.products;
    const Blocks& blocks = plan.blocks;
    if (plan.merged && blocks.in_blocks() == 1 && tile.rows < kThin * tile.positions()) {
      sums.all_fresh();
      sums.clear_untouched(0, panel);
      for (size_t product = 0; product < products.size(); ++product) {
        by_outputs(packed.of_product(product, panel.width), products[product].weight, panel);
      }
      return;
    }
    for (int64_t in_block = tile.parts.begin; in_block < tile.parts.end; ++in_block) {
      sums.all_fresh();
      for (size_t product = 0; product < products.size(); ++product) {
        const Number* rows = packed.of_product(product, panel.width);
        const Number* weights = products[product].weight + in_block * blocks.in_step;
        plan.merged ? by_rows(in_block, rows, weights, panel) : by_taps(in_block, rows, weights, panel);
      }
      sums.clear_untouched(in_block, panel);
    }
  }

  void by_taps(int64_t in_block, const Number* rows, const Number* weights, const Panel& panel) {
    const Range ys = tile.ys, xs = tile.xs;
    const int64_t width = panel.width, stride = sums.stride;
    const Blocks& blocks = plan.blocks;
    const int64_t out_all = plan.out_blocks(), group = in_block / blocks.in_blocks();
    const Ahead ahead(blocks, plan.p.window, tile.positions());
    over_taps([&](int64_t tap, int64_t a, const int32_t* to_y, const int32_t* to_x) {
      for (int64_t b = 0; b < blocks.out_blocks(); ++b) {
        const Number* weight = weights + tap * blocks.tap_step + b * blocks.out_step;
        const int64_t out_block = group * blocks.out_blocks() + b;
        uintptr_t next = reinterpret_cast<uintptr_t>(weight + blocks.out_step);
        for (int64_t y = ys.begin; y < ys.end; ++y) {
          if (to_y[y] < 0) {
            continue;
          }
          for (int64_t x = xs.begin; x < xs.end; ++x) {
            if (to_x[x] < 0) {
              continue;
            }
            next = ahead.fetch(next);
            const int64_t i = tile.index(y, x);
            const int64_t* in = tile.blocks_of(i);
            const int64_t* out = packed.first.get() + tile.box_index(a, to_y[y], to_x[x]) * (out_all + 1) + out_block;
            const int64_t left = in[in_block + 1] - in[in_block], count = out[1] - out[0];
            if (left > 0 && count > 0) {
              plan.product.multiply_add(sums.fresh.get()[i], width, left, weight, packed.row.get() + out[0], count,
                                        rows + out[0] * width, width, tile.column.get() + in[in_block],
                                        sums.rows_of(i) + (in[in_block] - in[0]) * stride, stride);
              sums.fresh.get()[i] = false;
            }
          }
        }
      }
    });
  }

  // The taps along the last axis in one sum: with few channels each of them alone is too short to be worth a call. What
  // they read lies side by side, last tap first. Output x is joined with input q by tap q + padding - x: the rows have
  // x taken off already (counted from the tile's first output), so one list serves all inputs.
  void by_rows(int64_t in_block, const Number* rows, const Number* weights, const Panel& panel) {
    const Range ys = tile.ys, xs = tile.xs;
    const int64_t width = panel.width, stride = sums.stride;
    const Window& w = plan.p.window;
    const Blocks& blocks = plan.blocks;
    const int64_t reach = w.taps[2] - 1;
    for (int64_t ta = 0; ta < w.taps[0]; ++ta) {
      const int64_t a = plan.reach[0].tap(ta)[tile.depth];
      for (int64_t ty = 0; a >= 0 && ty < w.taps[1]; ++ty) {
        const int32_t* to_y = plan.reach[1].tap(ty);
        const Number* weight = weights + (ta * w.taps[1] + ty) * w.taps[2] * blocks.tap_step;
        for (int64_t y = ys.begin; y < ys.end; ++y) {
          for (int64_t x = xs.begin; to_y[y] >= 0 && x < xs.end; ++x) {
            const int64_t i = tile.index(y, x), last = x + w.padding[2];
            const int64_t* in = tile.blocks_of(i);
            const int64_t left = in[in_block + 1] - in[in_block];
            const Range outputs{std::max<int64_t>(0, last - reach), std::min(w.out[2], last + 1)};
            if (left == 0 || outputs.size() <= 0) {
              continue;
            }
            const int64_t begin = packed.first.get()[2 * tile.box_index(a, to_y[y], outputs.begin)];
            const int64_t count = packed.first.get()[2 * tile.box_index(a, to_y[y], outputs.end - 1) + 1] - begin;
            if (count > 0) {
              plan.product.multiply_add(sums.fresh.get()[i], width, left,
                                        weight + (last - tile.box[2].begin) * blocks.tap_step, packed.row.get() + begin,
                                        count, rows + begin * width, width, tile.column.get() + in[in_block],
                                        sums.rows_of(i) + (in[in_block] - in[0]) * stride, stride);
              sums.fresh.get()[i] = false;
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
  void by_outputs(const Number* rows, const Number* weights, const Panel& panel) {
    const Range ys = tile.ys, xs = tile.xs;
    const int64_t width = panel.width, stride = sums.stride;
    const Window& w = plan.p.window;
    const int64_t *in_first = tile.first.get(), *out_first = packed.first.get();
    const int32_t* row_of = packed.row.get();
    const Range out_ys = tile.box[1], out_xs = tile.box[2];
    const int64_t step = plan.blocks.tap_step, row = w.taps[2] * step;
    int32_t* column = shifted_.reserve(tile.rows);
    for (int64_t i = 0; i < ys.size() * xs.size(); ++i) {
      for (int64_t e = in_first[2 * i]; e < in_first[2 * i + 1]; ++e) {
        column[e] = tile.column.get()[e] + static_cast<int32_t>(i % xs.size() * step);
      }
    }
    weights += (xs.begin + w.padding[2] - out_xs.begin) * step;
    for (int64_t ta = 0; ta < w.taps[0]; ++ta) {
      const int64_t a = plan.reach[0].tap(ta)[tile.depth];
      for (int64_t out_y = out_ys.end - 1; a >= 0 && out_y >= out_ys.begin; --out_y) {
        for (int64_t out_x = out_xs.begin; out_x < out_xs.end; ++out_x) {
          const int64_t* out = out_first + 2 * tile.box_index(a, out_y, out_x);
          const Range inputs{std::max(xs.begin, out_x - w.padding[2]),
                             std::min(xs.end, out_x - w.padding[2] + w.taps[2])};
          for (int64_t ty = 0; ty < w.taps[1] && inputs.size() > 0 && out[1] > out[0]; ++ty) {
            const int64_t y = out_y * w.stride[1] - w.padding[1] + ty * w.dilation[1];
            if (y < ys.begin || y >= ys.end) {
              continue;
            }
            const int64_t i = tile.index(y, inputs.begin), begin = in_first[2 * i];
            const int64_t left = in_first[2 * (i + inputs.size()) - 1] - begin;
            if (left > 0) {
              plan.product.multiply_add(false, width, left, weights + (ta * w.taps[1] + ty) * row, row_of + out[0],
                                        out[1] - out[0], rows + out[0] * width, width, column + begin, sums.rows_of(i),
                                        stride);
            }
          }
        }
      }
    }
  }

  // One channel per group: alive where both sides are.
  void by_channels(const Panel& panel) {
    const Range ys = tile.ys, xs = tile.xs;
    const int64_t width = panel.width, stride = sums.stride;
    const Window& w = plan.p.window;
    const int64_t taps = w.taps[0] * w.taps[1] * w.taps[2];
    const int32_t zero = 0;
    if (plan.p.initial.empty()) {
      sums.all_fresh();
      sums.clear_untouched(0, panel);
    }
    for (size_t product = 0; product < plan.p.products.size(); ++product) {
      const Number* read = packed.of_product(product, width);
      const Number* weights = plan.p.products[product].weight;
      over_taps([&](int64_t tap, int64_t a, const int32_t* to_y, const int32_t* to_x) {
        for (int64_t y = ys.begin; y < ys.end; ++y) {
          for (int64_t x = xs.begin; x < xs.end; ++x) {
            if (to_y[y] < 0 || to_x[x] < 0) {
              continue;
            }
            const int64_t i = tile.index(y, x);
            const int64_t* in = tile.blocks_of(i);
            const int64_t* out = packed.first.get() + 2 * tile.box_index(a, to_y[y], to_x[x]);
            T* to = sums.rows_of(i);
            // One block of all channels: an entry's place in its block is its channel.
            for (int64_t e = in[0], o = out[0]; e < in[1] && o < out[1];) {
              const int64_t left = tile.column.get()[e], right = packed.row.get()[o] / plan.blocks.row_step;
              if (left == right) {
                plan.product.multiply_add(false, width, 1, weights + left * taps + tap, &zero, 1, read + o * width,
                                          width, &zero, to + (e - in[0]) * stride, stride);
              }
              e += left <= right;
              o += right <= left;
            }
          }
        }
      });
    }
  }

  Buffer<int32_t> shifted_;
};

}  // namespace fastlrp::cpu
