// csrc/cpu/sparse_pairs_kernel.h against loops: every unit, hostile sizes, buffers of exactly what may be touched.
#include <cstring>

#include "../../csrc/cpu/sparse_pairs_kernel.h"
#include "check.h"

namespace {

using namespace fastlrp;
using namespace fastlrp::cpu;

// Of pairs of rows: what both layouts of the weight are addressed with.
struct Question {
  int64_t width, left, count, stride;
  bool fresh;
  std::vector<Bf16> weight, s;
  std::vector<int32_t> row, column;
  std::vector<float> acc;

  Question(int64_t k, int64_t j, int64_t i, bool tiles, bool start) : width(k), left(j), count(i), fresh(start) {
    const int64_t outs = count + native::integer(0, 40), blocks = 2;
    const int64_t ins = left + native::integer(0, native::integer(0, 2) == 0 ? 3 * left : 9);
    const int64_t row_step = tiles ? 1 : ins, column_step = tiles ? outs : 1;
    stride = width + native::integer(0, 3);
    for (const float value : native::mixed<float>(blocks * outs * ins)) {
      weight.emplace_back(value);
    }
    for (const float value : native::mixed<float>(count * width)) {
      s.emplace_back(value);
    }
    // Ascending with gaps, in either of two weights, the last two the same row as where one has no partner.
    int64_t spare = outs - count, at = 0;
    for (int64_t e = 0; e < count; ++e, ++at) {
      const int64_t gap = native::integer(0, std::min<int64_t>(spare, 3));
      spare -= gap, at += gap;
      row.push_back(static_cast<int32_t>(at * row_step + (native::integer(0, 4) == 0 ? outs * ins : 0)));
    }
    if (count > 1 && native::integer(0, 1) == 1) {
      row[count - 1] = row[count - 2];
    }
    for (int64_t c = 0, before = 0; c < left; ++c) {
      before = native::integer(before, std::min(before + 5, ins - left));
      column.push_back(static_cast<int32_t>((c + before) * column_step));
    }
    const int64_t size = (left - 1) * stride + width;
    acc = fresh ? native::poisoned<float>(size) : native::mixed<float>(size);
  }

  std::vector<double> by_loops() const {
    std::vector<double> sums;
    for (int64_t j = 0; j < left; ++j) {
      for (int64_t k = 0; k < width; ++k) {
        double sum = fresh ? 0 : acc[j * stride + k];
        for (int64_t e = 0; e < count; ++e) {
          sum += static_cast<double>(weight[row[e] + column[j]]) * s[e / 2 * 2 * width + 2 * k + e % 2];
        }
        sums.push_back(sum);
      }
    }
    return sums;
  }

  std::vector<float> by(const PairsKernel& kernel) const {
    std::vector<float> sums = acc, found;
    if (kernel.begin != nullptr) {
      kernel.begin();
    }
    kernel.multiply_add(fresh, width, left, weight.data(), row.data(), count, s.data(), width, column.data(),
                        sums.data(), stride);
    if (kernel.end != nullptr) {
      kernel.end();
    }
    for (int64_t j = 0; j < left; ++j) {
      found.insert(found.end(), sums.begin() + j * stride, sums.begin() + j * stride + width);
    }
    return found;
  }
};

TEST(sparse_pairs_equal_loops_and_their_definition) {
  const auto same = [](const std::vector<float>& first, const std::vector<float>& second) {
    return std::memcmp(first.data(), second.data(), first.size() * sizeof(float)) == 0;
  };
  for (const std::string& unit : available_bf16_units()) {
    set_bf16_unit(unit);
    const bool tiles = has_tiles(bf16_unit());
    const PairsKernel kernel = pairs_kernel(tiles);
    for (const int64_t width : {16, 32, 48, 64}) {
      for (const int64_t left : {1, 7, 8, 9, 13, 15, 16, 17, 31, 32, 33, 64, 150}) {
        const int64_t count = 2 * native::integer(1, native::integer(0, 4) == 0 ? 270 : 40);
        const Question question(width, left, count, tiles, native::integer(0, 1) == 1);
        const std::string context =
            unit + " K " + std::to_string(width) + " left " + std::to_string(left) + " count " + std::to_string(count);
        const std::vector<float> found = question.by(kernel);
        CHECK_FOR(native::close(found, question.by_loops()), context);
        set_bf16_unit(tiles ? "software_tiles" : "software");
        CHECK_FOR(same(found, question.by(pairs_kernel(tiles))), context);
        set_bf16_unit(unit);
      }
    }
  }
  set_bf16_unit("auto");
}

TEST(sparse_pairs_are_scaled_and_rounded_once) {
  for (const int64_t valid : {1, 5, 16, 31, 32}) {
    const int64_t width = (valid + 15) / 16 * 16, count = 8, stride = valid + native::integer(0, 2);
    const std::vector<float> source = native::mixed<float>(5 * stride + valid), scale = native::mixed<float>(count);
    const std::vector<int64_t> rows = {5, 0, 3, -1, -1, -1, -1, 2};
    std::vector<Bf16> found(count * width);
    scale_pairs(width, valid, count, source.data(), stride, rows.data(), scale.data(), found.data());
    for (int64_t e = 0; e < count; ++e) {
      for (int64_t k = 0; k < width; ++k) {
        const bool filled = rows[e] >= 0 && k < valid;
        const Bf16 expected(filled ? source[rows[e] * stride + k] * scale[e] : 0.0f);
        CHECK(found[e / 2 * 2 * width + 2 * k + e % 2].bits == expected.bits);
      }
    }
  }
}

// A number that is not finite reaches all sums that read it, and no others: nothing beyond the pairs is multiplied.
TEST(sparse_pairs_pass_on_what_is_not_finite) {
  for (const std::string& unit : available_bf16_units()) {
    set_bf16_unit(unit);
    const bool tiles = has_tiles(bf16_unit());
    Question question(32, 20, 42, tiles, true);
    question.s[20 / 2 * 2 * 32 + 2 * 3] = Bf16(std::numeric_limits<float>::quiet_NaN());
    question.s[40 / 2 * 2 * 32 + 2 * 7 + 1] = Bf16(std::numeric_limits<float>::infinity());
    const std::vector<float> found = question.by(pairs_kernel(tiles));
    for (int64_t i = 0; i < 20 * 32; ++i) {
      CHECK(std::isfinite(found[i]) == (i % 32 != 3 && i % 32 != 7));
    }
  }
  set_bf16_unit("auto");
}

}  // namespace
