#include "conv_point.h"

#include <algorithm>
#include <type_traits>

#include "../common/isa.h"
#include "../common/memory.h"
#include "../common/parallel.h"
#include "conv_point_kernel.h"
#include "elementwise.h"

namespace fastlrp::cpu {
namespace {

// Rows that are multiplied at once stay in a second-level cache, so many columns of their sums in the first or second;
// a weight is read once for so many rows.
constexpr int64_t kBlockBytes = 256 << 10, kLeastRows = 64, kMostRows = 256, kColumns = 256;

// Columns are parted in multiples of so many, where there are fewer blocks of rows than threads.
constexpr int64_t kPartedColumns = 64;

// Copied rows begin at different sets of a first-level cache.
int64_t step_of(int64_t depth) { return depth + 2 * kPointLanes; }

// Memory of one thread: copies of rows, and some columns of their sums, of one product or several.
template <class Number>
class Room {
 public:
  Room(int64_t rows, int64_t depth, int64_t sums)
      : data_(BufferPool::shared().acquire(rows * (step_of(depth) * sizeof(Number) + sums * kColumns * sizeof(float)))),
        rows_(rows),
        sums_(sums) {}
  Room(const Room&) = delete;
  Room& operator=(const Room&) = delete;
  ~Room() { BufferPool::shared().release(data_); }

  float* sums(int64_t number = 0) const { return static_cast<float*>(data_) + number * rows_ * kColumns; }
  Number* copies() const { return reinterpret_cast<Number*>(sums(sums_)); }

 private:
  void* data_;
  int64_t rows_, sums_;
};

// Rows [first, last) of all outputs, and columns [begin, end) of their sums.
struct Block {
  int64_t first, last, begin, end;

  int64_t rows() const { return last - first; }
};

// Runs body(block, room) for all blocks of `columns` columns of sums of `depth` products each; `sums`: of how many
// products the room holds them.
template <class Number, class Body>
void in_blocks(int64_t rows, int64_t depth, int64_t columns, const Body& body, int64_t sums = 1) {
  if (rows == 0) {
    return;
  }
  const int64_t bytes = step_of(depth) * sizeof(Number), threads = thread_count();
  const int64_t fitting = std::clamp(kBlockBytes / bytes, kLeastRows, kMostRows);
  const int64_t parts =
      std::max((rows + fitting - 1) / fitting, std::min(threads, (rows + kLeastRows - 1) / kLeastRows));
  const int64_t each = (rows + parts - 1) / parts;
  const int64_t most_across = (columns + kPartedColumns - 1) / kPartedColumns;
  const int64_t across = std::min((threads + parts - 1) / parts, most_across);
  const int64_t wide = (most_across + across - 1) / across * kPartedColumns;
  parallel_for(parts * across, 1, [&](int64_t begin, int64_t end) {
    const Room<Number> room(each, depth, sums);
    for (int64_t part = begin; part < end; ++part) {
      const int64_t first = part / across * each, column = part % across * wide;
      const Block block{first, std::min(rows, first + each), column, std::min(columns, column + wide)};
      if (block.first < block.last && block.begin < block.end) {
        body(block, room);
      }
    }
  });
}

// Runs body(column, width) for some columns of a block after the other.
template <class Body>
void in_columns(const Block& block, const Body& body) {
  for (int64_t column = block.begin; column < block.end; column += kColumns) {
    body(column, std::min(kColumns, block.end - column));
  }
}

// Where row `row` of all outputs reads, or writes, in the convolution's inputs.
int64_t at_input(const PointMaps& maps, int64_t row) {
  const int64_t area = maps.out_area(), map = row / area, place = row % area;
  const int64_t h = place / maps.out_size[1] * maps.stride[0], w = place % maps.out_size[1] * maps.stride[1];
  return (map * maps.size[0] + h) * maps.size[1] + w;
}

bool is_strided(const PointMaps& maps) { return maps.stride[0] != 1 || maps.stride[1] != 1; }

// Rows as the products read them, and how far they are apart.
template <class Number>
struct Rows {
  const Number* data;
  int64_t step;
};

// The inputs that the rows of a block read: those of float32 without strides where they lie.
template <class Number>
Rows<Number> inputs_of(const PointMaps& maps, const float* x, int64_t inputs, const Block& block,
                       const Room<Number>& room) {
  const bool strided = is_strided(maps);
  if constexpr (std::is_same_v<Number, float>) {
    if (!strided) {
      return {x + block.first * inputs, inputs};
    }
  }
  const int64_t step = step_of(inputs);
  for (int64_t row = block.first; row < block.last; ++row) {
    const int64_t at = strided ? at_input(maps, row) : row;
    point_rounded(inputs, x + at * inputs, room.copies() + (row - block.first) * step);
  }
  return {room.copies(), step};
}

struct AddBias {
  static FASTLRP_INLINE void run(int64_t width, const float* __restrict bias, float* __restrict sums) {
    for (int64_t i = 0; i < width; ++i) {
      sums[i] += bias[i];
    }
  }
};

struct NotNegative {
  static FASTLRP_INLINE void run(int64_t width, float* sums) {
    for (int64_t i = 0; i < width; ++i) {
      sums[i] = sums[i] < 0 ? 0 : sums[i];
    }
  }
};

struct Times {
  static FASTLRP_INLINE void run(int64_t count, const float* __restrict first, const float* __restrict second,
                                 float* __restrict product) {
    for (int64_t i = 0; i < count; ++i) {
      product[i] = first[i] * second[i];
    }
  }
};

struct Choose {
  static FASTLRP_INLINE void run(int64_t count, const float* __restrict sign, const float* __restrict above,
                                 const float* __restrict below, float* __restrict y) {
    for (int64_t i = 0; i < count; ++i) {
      const float value = sign[i] > 0 ? above[i] : below[i];
      y[i] = sign[i] == 0 ? 0 : value;
    }
  }
};

struct Raise {
  static FASTLRP_INLINE void run(int64_t count, const float* __restrict z, float share, float* __restrict sums) {
    for (int64_t i = 0; i < count; ++i) {
      sums[i] = z[i] + share * sums[i];
    }
  }
};

// From the sums of `count` outputs, at most kColumns, of which the first is at `at` in the maps and that of channel
// `channel`.
template <class Number>
void finish(const ConvPointSums<Number>& p, int64_t at, int64_t channel, int64_t count, float* sums) {
  const auto from = [at](auto* data) { return data == nullptr ? nullptr : data + at; };
  const float* z = from(p.z);
  const float* factor = from(p.factor);
  float product[kColumns];
  if (p.times != nullptr) {
    run_best<Times>(count, factor, from(p.times), static_cast<float*>(product));
    factor = product;
  }
  if (p.bias != nullptr) {
    run_best<AddBias>(count, p.bias + channel, sums);
  }
  if (p.rule == Rule::epsilon) {
    run_best<Raise>(count, z, p.alpha, sums);
    z = sums;
  }
  coefficients_of_row(p.rule, {z, sums, nullptr, factor, from(p.u), from(p.v), count, p.alpha, p.epsilon});
}

}  // namespace

void conv_point(const ConvPoint& p) {
  in_blocks<float>(p.maps.samples * p.maps.out_area(), p.inputs, p.outputs, [&](const Block& block, const auto& room) {
    const Rows<float> x = inputs_of(p.maps, p.x, p.inputs, block, room);
    in_columns(block, [&](int64_t column, int64_t width) {
      float* y = p.y + block.first * p.outputs + column;
      point_products(block.rows(), p.inputs, width, x.data, x.step, p.weight + column * p.inputs, y, p.outputs);
      for (int64_t row = 0; row < block.rows(); ++row, y += p.outputs) {
        if (p.bias != nullptr) {
          run_best<AddBias>(width, p.bias + column, y);
        }
        if (p.not_negative) {
          run_best<NotNegative>(width, y);
        }
      }
    });
  });
}

template <class Number>
void conv_point_sums(const ConvPointSums<Number>& p) {
  in_blocks<Number>(p.maps.samples * p.maps.out_area(), p.inputs, p.outputs, [&](const Block& block, const auto& room) {
    const Rows<Number> x = inputs_of(p.maps, p.x, p.inputs, block, room);
    in_columns(block, [&](int64_t column, int64_t width) {
      const Number* weight = p.weight + column * p.inputs;
      point_products(block.rows(), p.inputs, width, x.data, x.step, weight, room.sums(), width);
      for (int64_t row = 0; row < block.rows(); ++row) {
        finish(p, (block.first + row) * p.outputs + column, column, width, room.sums() + row * width);
      }
    });
  });
}

template void conv_point_sums<float>(const ConvPointSums<float>&);
template void conv_point_sums<Bf16>(const ConvPointSums<Bf16>&);

template <class From, class Number, class To>
void conv_point_transposed(const ConvPointTransposed<From, Number, To>& p) {
  const PointMaps& maps = p.maps;
  const int64_t area = maps.out_area(), all = maps.samples * p.targets, depth = p.parts * p.outputs;
  const bool strided = is_strided(maps);
  if (strided) {
    const int64_t map = maps.size[0] * maps.size[1] * p.inputs;
    parallel_for(all, 1, [&](int64_t begin, int64_t end) { std::fill(p.y + begin * map, p.y + end * map, To(0.0f)); });
  }
  const int64_t step = step_of(depth);
  in_blocks<Number>(all * area, depth, p.inputs, [&](const Block& block, const auto& room) {
    for (int64_t row = block.first; row < block.last; ++row) {
      const int64_t coefficient = row / area / p.targets * area + row % area;
      for (int64_t part = 0; part < p.parts; ++part) {
        point_scaled(p.outputs, p.relevance + row * p.outputs, p.coefficients[part] + coefficient * p.outputs,
                     room.copies() + (row - block.first) * step + part * p.outputs);
      }
    }
    in_columns(block, [&](int64_t column, int64_t width) {
      const Number* weight = p.weight + column * depth;
      if constexpr (std::is_same_v<To, float>) {
        if (!strided) {
          float* y = p.y + block.first * p.inputs + column;
          return point_products(block.rows(), depth, width, room.copies(), step, weight, y, p.inputs);
        }
      }
      point_products(block.rows(), depth, width, room.copies(), step, weight, room.sums(), width);
      for (int64_t row = block.first; row < block.last; ++row) {
        const int64_t at = strided ? at_input(maps, row) : row;
        point_rounded(width, room.sums() + (row - block.first) * width, p.y + at * p.inputs + column);
      }
    });
  });
}

template void conv_point_transposed(const ConvPointTransposed<float, float, float>&);
template void conv_point_transposed(const ConvPointTransposed<float, Bf16, Bf16>&);
template void conv_point_transposed(const ConvPointTransposed<float, Bf16, float>&);
template void conv_point_transposed(const ConvPointTransposed<Bf16, Bf16, Bf16>&);
template void conv_point_transposed(const ConvPointTransposed<Bf16, Bf16, float>&);

void conv_point_chosen(const ConvPointChosen& p) {
  const PointMaps& maps = p.maps;
  const int64_t area = maps.out_area(), all = maps.samples * p.targets, wide = point_lanes(p.outputs);
  const int64_t depth = p.parts * wide, step = step_of(depth), map = maps.size[0] * maps.size[1];
  const bool strided = is_strided(maps);
  if (strided) {
    parallel_for(all, 1, [&](int64_t begin, int64_t end) {
      std::fill(p.y + begin * map * p.inputs, p.y + end * map * p.inputs, 0.0f);
    });
  }
  const auto in_room = [&](const Block& block, const Room<float>& room) {
    for (int64_t row = block.first; row < block.last; ++row) {
      const int64_t coefficient = row / area / p.targets * area + row % area;
      for (int64_t part = 0; part < p.parts; ++part) {
        float* copy = room.copies() + (row - block.first) * step + part * wide;
        point_scaled(p.outputs, p.relevance + row * p.outputs, p.coefficients[part] + coefficient * p.outputs, copy);
        std::fill(copy + p.outputs, copy + wide, 0.0f);
      }
    }
    in_columns(block, [&](int64_t column, int64_t width) {
      float *above = room.sums(0), *below = room.sums(1);
      point_products(block.rows(), depth, width, room.copies(), step, p.above + column * depth, above, width);
      point_products(block.rows(), depth, width, room.copies(), step, p.below + column * depth, below, width);
      const int64_t count = std::min(width, p.inputs - column);
      for (int64_t row = block.first; row < block.last; ++row, above += width, below += width) {
        const int64_t at = strided ? at_input(maps, row) : row;
        const int64_t own = at / map / p.targets * map + at % map;
        run_best<Choose>(count, p.sign + own * p.inputs + column, static_cast<const float*>(above),
                         static_cast<const float*>(below), p.y + at * p.inputs + column);
      }
    });
  };
  in_blocks<float>(all * area, depth, point_lanes(p.inputs), in_room, 2);
}

template <class Number>
void conv_point_pack(int64_t depth, int64_t columns, const float* matrix, int64_t depth_step, int64_t column_step,
                     int64_t first, int64_t all, Number* packed) {
  constexpr int64_t together = std::is_same_v<Number, float> ? 1 : 2;  // rows of the matrix side by side
  for (int64_t c = 0; c < columns; ++c) {
    Number* panel = packed + c / kPointPanel * kPointPanel * all + c % kPointPanel * together;
    for (int64_t d = 0; d < depth; ++d) {
      const int64_t row = first + d;
      panel[row / together * together * kPointPanel + row % together] =
          Number(matrix[d * depth_step + c * column_step]);
    }
  }
}

template void conv_point_pack<float>(int64_t, int64_t, const float*, int64_t, int64_t, int64_t, int64_t, float*);
template void conv_point_pack<Bf16>(int64_t, int64_t, const float*, int64_t, int64_t, int64_t, int64_t, Bf16*);

}  // namespace fastlrp::cpu
