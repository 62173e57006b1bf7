#include "conv_few.h"

#include <algorithm>
#include <type_traits>

#include "../common/isa.h"
#include "../common/memory.h"
#include "../common/parallel.h"
#include "conv_point_kernel.h"

namespace fastlrp::cpu {
namespace {

// Positions that are multiplied at once: whole groups of rows of the products, whose results stay in the cache.
constexpr int64_t kPositions = 24;

}  // namespace
}  // namespace fastlrp::cpu

#define FASTLRP_KERNEL_FILE "conv_few_kernel.inc"
#include "each_isa.inc"

namespace fastlrp::cpu {
namespace {

using AddUp = decltype(&portable::add_up);

AddUp best_add_up() {
#if FASTLRP_X86
  return isa() == Isa::avx512 ? avx512::add_up : isa() == Isa::avx2 ? avx2::add_up : portable::add_up;
#else
  return portable::add_up;
#endif
}

// `count` numbers of x as the products read them: where they lie, or in `room`.
template <class From, class Number>
const Number* operands(const ConvFewOf<From, Number>& p, int64_t at_x, int64_t at_scale, int64_t count, Number* room) {
  if (p.scale != nullptr) {
    point_scaled(count, p.x + at_x, p.scale + at_scale, room);
    return room;
  }
  if constexpr (std::is_same_v<From, Number>) {
    return p.x + at_x;
  } else {
    point_rounded(count, p.x + at_x, room);
    return room;
  }
}

// Rows [first, last) of y of one sample. `products`: room for kPositions * columns numbers, `room` for kPositions *
// outputs.
template <class From, class Number>
void rows(const ConvFewOf<From, Number>& p, int64_t sample, int64_t first, int64_t last, float* products,
          Number* room) {
  const AddUp add_up = best_add_up();
  float* y = p.y + sample * p.size[0] * p.size[1] * p.channels;
  std::fill(y + first * p.size[1] * p.channels, y + last * p.size[1] * p.channels, 0.0f);
  const int64_t map = p.out_size[0] * p.out_size[1] * p.outputs, width = p.columns();
  const int64_t reach = first + p.padding[0] - p.kernel[0] + 1;
  const int64_t from = reach <= 0 ? 0 : (reach + p.stride[0] - 1) / p.stride[0];
  const int64_t to = std::min(p.out_size[0], (last - 1 + p.padding[0]) / p.stride[0] + 1);
  for (int64_t row = from; row < to; ++row) {
    for (int64_t column = 0; column < p.out_size[1]; column += kPositions) {
      const int64_t count = std::min(kPositions, p.out_size[1] - column);
      const int64_t at = (row * p.out_size[1] + column) * p.outputs;
      const Number* given = operands(p, sample * map + at, sample / p.targets * map + at, count * p.outputs, room);
      point_products(count, p.outputs, width, given, p.outputs, p.weight, products, width);
      add_up(p, products, row, column, count, first, last, y);
    }
  }
}

}  // namespace

int64_t FewShape::columns() const {
  return (kernel[0] * kernel[1] * channels + kPointPanel - 1) / kPointPanel * kPointPanel;
}

template <class Number>
void conv_few_pack(const FewShape& p, const float* weight, Number* packed) {
  constexpr int64_t together = std::is_same_v<Number, float> ? 1 : 2;  // outputs side by side
  const int64_t taps = p.kernel[0] * p.kernel[1];
  std::fill_n(packed, p.outputs * p.columns(), Number(0.0f));
  for (int64_t o = 0; o < p.outputs; ++o) {
    for (int64_t c = 0; c < p.channels; ++c) {
      for (int64_t tap = 0; tap < taps; ++tap) {
        const int64_t column = tap * p.channels + c;
        packed[column / kPointPanel * kPointPanel * p.outputs + o / together * together * kPointPanel +
               column % kPointPanel * together + o % together] = Number(weight[(o * p.channels + c) * taps + tap]);
      }
    }
  }
}

template void conv_few_pack<float>(const FewShape&, const float*, float*);
template void conv_few_pack<Bf16>(const FewShape&, const float*, Bf16*);

template <class From, class Number>
void conv_few(const ConvFewOf<From, Number>& p) {
  if (p.samples == 0) {
    return;
  }
  // Threads take rows of y. Both of two neighbours make the products that both read.
  const int64_t wanted = std::min(p.size[0], (thread_count() + p.samples - 1) / p.samples);
  const int64_t each = (p.size[0] + wanted - 1) / wanted, parts = (p.size[0] + each - 1) / each;
  parallel_for(p.samples * parts, 1, [&](int64_t begin, int64_t end) {
    BufferPool& pool = BufferPool::shared();
    void* room = pool.acquire(kPositions * (p.outputs * sizeof(Number) + p.columns() * sizeof(float)));
    float* products = static_cast<float*>(room);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % parts * each;
      rows(p, i / parts, first, std::min(first + each, p.size[0]), products,
           reinterpret_cast<Number*>(products + kPositions * p.columns()));
    }
    pool.release(room);
  });
}

template void conv_few(const ConvFewOf<float, float>&);
template void conv_few(const ConvFewOf<float, Bf16>&);
template void conv_few(const ConvFewOf<Bf16, Bf16>&);

}  // namespace fastlrp::cpu
