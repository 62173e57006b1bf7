#include "conv_point.h"

#include <algorithm>

#include "../common/isa.h"
#include "../common/memory.h"
#include "../common/parallel.h"
#include "conv_point_kernel.h"
#include "elementwise.h"

namespace fastlrp::cpu {
namespace {

// What is multiplied at once, and its sums, stay in a second-level cache; a weight is read once for so many rows.
constexpr int64_t kBlockBytes = 256 << 10, kLeastRows = 64;

// Rows of Bf16 begin at different sets of a first-level cache.
int64_t step_of(int64_t depth) { return depth + 2 * kPointLanes; }

// Memory of one thread: rows of bfloat16, and their sums.
class Room {
 public:
  Room(int64_t rows, int64_t depth, int64_t columns)
      : data_(BufferPool::shared().acquire(rows * (step_of(depth) * sizeof(Bf16) + columns * sizeof(float)))),
        rows_(rows),
        columns_(columns) {}
  Room(const Room&) = delete;
  Room& operator=(const Room&) = delete;
  ~Room() { BufferPool::shared().release(data_); }

  float* sums() const { return static_cast<float*>(data_); }
  Bf16* narrow() const { return reinterpret_cast<Bf16*>(sums() + rows_ * columns_); }

 private:
  void* data_;
  int64_t rows_, columns_;
};

// Runs body(first, last, room) for blocks of rows in each thread.
template <class Body>
void in_blocks(int64_t rows, int64_t depth, int64_t columns, const Body& body) {
  if (rows == 0) {
    return;
  }
  const int64_t bytes = step_of(depth) * sizeof(Bf16) + columns * sizeof(float);
  const int64_t fitting = std::max(kLeastRows, kBlockBytes / bytes), threads = thread_count();
  const int64_t parts =
      std::max((rows + fitting - 1) / fitting, std::min(threads, (rows + kLeastRows - 1) / kLeastRows));
  const int64_t each = (rows + parts - 1) / parts;
  parallel_for(parts, 1, [&](int64_t begin, int64_t end) {
    const Room room(each, depth, columns);
    for (int64_t part = begin; part < end; ++part) {
      const int64_t first = part * each, last = std::min(rows, first + each);
      if (first < last) {
        body(first, last, room);
      }
    }
  });
}

// Where row `row` of all outputs reads, or writes, in the convolution's inputs.
int64_t at_input(const PointMaps& maps, int64_t row) {
  const int64_t area = maps.out_area(), map = row / area, place = row % area;
  const int64_t h = place / maps.out_size[1] * maps.stride[0], w = place % maps.out_size[1] * maps.stride[1];
  return (map * maps.size[0] + h) * maps.size[1] + w;
}

struct AddBias {
  static FASTLRP_INLINE void run(int64_t rows, int64_t width, const float* __restrict bias, float* __restrict sums) {
    for (int64_t row = 0; row < rows; ++row, sums += width) {
      for (int64_t i = 0; i < width; ++i) {
        sums[i] += bias[i];
      }
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

// From the sums of `count` entries from `at` on.
void finish(const ConvPointSums& p, int64_t at, int64_t count, float* sums) {
  const auto from = [at](auto* data) { return data == nullptr ? nullptr : data + at; };
  const float* z = from(p.z);
  if (p.bias != nullptr) {
    run_best<AddBias>(count / p.outputs, p.outputs, p.bias, sums);
  }
  if (p.rule == Rule::epsilon) {
    run_best<Raise>(count, z, p.alpha, sums);
    z = sums;
  }
  coefficients_of_row(p.rule, {z, sums, nullptr, from(p.factor), from(p.u), from(p.v), count, p.alpha, p.epsilon});
}

}  // namespace

void conv_point_sums(const ConvPointSums& p) {
  const PointMaps& maps = p.maps;
  const bool strided = maps.stride[0] != 1 || maps.stride[1] != 1;
  const int64_t step = step_of(p.inputs);
  in_blocks(maps.samples * maps.out_area(), p.inputs, p.outputs, [&](int64_t first, int64_t last, const Room& room) {
    for (int64_t row = first; row < last; ++row) {
      const int64_t at = strided ? at_input(maps, row) : row;
      point_rounded(p.inputs, p.x + at * p.inputs, room.narrow() + (row - first) * step);
    }
    point_products(last - first, p.inputs, p.outputs, room.narrow(), step, p.weight, room.sums());
    finish(p, first * p.outputs, (last - first) * p.outputs, room.sums());
  });
}

template <class From>
void conv_point_transposed(const ConvPointTransposed<From>& p) {
  const PointMaps& maps = p.maps;
  const int64_t area = maps.out_area(), all = maps.samples * p.targets, depth = p.parts * p.outputs;
  const bool strided = maps.stride[0] != 1 || maps.stride[1] != 1;
  if (strided) {
    const int64_t map = maps.size[0] * maps.size[1] * p.inputs;
    parallel_for(all, 1,
                 [&](int64_t begin, int64_t end) { std::fill(p.y + begin * map, p.y + end * map, Bf16(0.0f)); });
  }
  const int64_t step = step_of(depth);
  in_blocks(all * area, depth, p.inputs, [&](int64_t first, int64_t last, const Room& room) {
    for (int64_t row = first; row < last; ++row) {
      const int64_t coefficient = row / area / p.targets * area + row % area;
      for (int64_t part = 0; part < p.parts; ++part) {
        point_scaled(p.outputs, p.relevance + row * p.outputs, p.coefficients[part] + coefficient * p.outputs,
                     room.narrow() + (row - first) * step + part * p.outputs);
      }
    }
    point_products(last - first, depth, p.inputs, room.narrow(), step, p.weight, room.sums());
    if (!strided) {
      return point_rounded((last - first) * p.inputs, room.sums(), p.y + first * p.inputs);
    }
    for (int64_t row = first; row < last; ++row) {
      point_rounded(p.inputs, room.sums() + (row - first) * p.inputs, p.y + at_input(maps, row) * p.inputs);
    }
  });
}

template void conv_point_transposed<float>(const ConvPointTransposed<float>&);
template void conv_point_transposed<Bf16>(const ConvPointTransposed<Bf16>&);

void conv_point_pack(int64_t depth, int64_t columns, const float* matrix, int64_t depth_step, int64_t column_step,
                     int64_t first, int64_t all, Bf16* packed) {
  for (int64_t c = 0; c < columns; ++c) {
    Bf16* panel = packed + c / kPointPanel * kPointPanel * all + c % kPointPanel * 2;
    for (int64_t d = 0; d < depth; ++d) {
      panel[(first + d) / 2 * 2 * kPointPanel + (first + d) % 2] = Bf16(matrix[d * depth_step + c * column_step]);
    }
  }
}

}  // namespace fastlrp::cpu
