// Relevance through norms, against the definition in double.
#include "../../csrc/cpu/norm.h"

#include "check.h"

using fastlrp::cpu::Norm;

namespace {

enum class Gain { kNone, kShared, kByRow };

template <class T>
void compare(int64_t batch, int64_t targets, int64_t rows, int64_t size, Gain kind, bool centre) {
  const std::vector<T> relevance = native::mixed<T>(batch * targets * rows * size);
  const std::vector<T> inverse = native::mixed<T>(batch * rows);
  const bool by_row = kind == Gain::kByRow;
  const std::vector<T> gain = native::mixed<T>(kind == Gain::kNone ? 0 : by_row ? batch * rows * size : size);
  std::vector<T> result = native::poisoned<T>(batch * targets * rows * size);
  std::vector<double> right(result.size());
  for (int64_t row = 0; row < batch * targets * rows; ++row) {
    const int64_t place = row / (targets * rows) * rows + row % rows;
    double sum = 0;
    for (int64_t i = 0; i < size; ++i) {
      const double factor = kind == Gain::kNone ? 1 : gain[(by_row ? place * size : 0) + i];
      right[row * size + i] = static_cast<double>(relevance[row * size + i]) * factor * inverse[place];
      sum += right[row * size + i];
    }
    for (int64_t i = 0; centre && i < size; ++i) {
      right[row * size + i] -= sum / static_cast<double>(size);
    }
  }
  fastlrp::cpu::norm_relevance<T>({batch, targets, rows, size, relevance.data(),
                                   kind == Gain::kNone ? nullptr : gain.data(), by_row, inverse.data(), centre,
                                   result.data()});
  CHECK_FOR(native::close(result, right), "size " + std::to_string(size) + ", rows " + std::to_string(rows));
}

}  // namespace

TEST(norm_relevance) {
  for (const int64_t size : {1, 2, 3, 15, 16, 17, 31, 32, 33, 100, 257}) {
    for (const Gain kind : {Gain::kNone, Gain::kShared, Gain::kByRow}) {
      for (const bool centre : {false, true}) {
        const int64_t batch = native::integer(1, 3), targets = native::integer(1, 3), rows = native::integer(1, 4);
        compare<float>(batch, targets, rows, size, kind, centre);
        compare<double>(batch, targets, rows, size, kind, centre);
      }
    }
  }
}

// More than one thread's part.
TEST(norm_relevance_in_parts) { compare<float>(2, 3, 13, 2049, Gain::kByRow, true); }
