// Looks at memory: words that are compared, sums of rows, and whether numbers are finite.
#include "../../csrc/common/bits.h"

#include <limits>

#include "check.h"

namespace {

std::vector<int64_t> words(int64_t count) {
  std::vector<int64_t> made(count);
  for (int64_t& word : made) {
    word = (native::integer(0, 1 << 30) << 33) - native::integer(0, 1 << 30);
  }
  return made;
}

template <class T>
void check_finite() {
  using Limits = std::numeric_limits<T>;
  for (const int64_t count : {0, 1, 2, 15, 16, 17, 33, 100}) {
    std::vector<T> numbers = native::mixed<T>(count);
    CHECK_FOR(fastlrp::all_finite(numbers.data(), count), std::to_string(count));
    for (int64_t i = 0; i < count; ++i) {
      const T before = numbers[i];
      for (const T number : {Limits::max(), Limits::lowest(), Limits::denorm_min(), T{-0.0}}) {
        numbers[i] = number;
        CHECK_FOR(fastlrp::all_finite(numbers.data(), count), std::to_string(i) + " of " + std::to_string(count));
      }
      for (const T number : {Limits::infinity(), -Limits::infinity(), Limits::quiet_NaN(), -Limits::quiet_NaN()}) {
        numbers[i] = number;
        CHECK_FOR(!fastlrp::all_finite(numbers.data(), count), std::to_string(i) + " of " + std::to_string(count));
      }
      numbers[i] = before;
    }
  }
}

}  // namespace

TEST(all_finite) {
  check_finite<float>();
  check_finite<double>();
}

TEST(same_words) {
  for (const int64_t step : {1, 2, 7}) {
    for (const int64_t count : {1, 2, 33}) {
      std::vector<int64_t> memory = words((count - 1) * step + 1), kept(count);
      for (int64_t i = 0; i < count; ++i) {
        kept[i] = memory[i * step];
      }
      CHECK_FOR(fastlrp::same_words(memory.data(), step, count, kept.data()), std::to_string(step));
      for (int64_t i = 0; i < static_cast<int64_t>(memory.size()); ++i) {
        memory[i] ^= int64_t{1} << 62;
        CHECK_FOR(fastlrp::same_words(memory.data(), step, count, kept.data()) == (i % step != 0), std::to_string(i));
        memory[i] ^= int64_t{1} << 62;
      }
    }
  }
}

TEST(row_sums) {
  for (const int64_t rows : {1, 2, 3, 1500}) {
    const std::vector<int64_t> memory = words(rows * fastlrp::kRowWords);
    std::vector<int64_t> sums(rows);
    fastlrp::row_sums(memory.data(), rows, sums.data());
    bool right = true;
    for (int64_t row = 0; row < rows; ++row) {
      uint64_t sum = 0;
      for (int64_t i = 0; i < fastlrp::kRowWords; ++i) {
        sum += static_cast<uint64_t>(memory[row * fastlrp::kRowWords + i]);
      }
      right = right && sums[row] == static_cast<int64_t>(sum);
    }
    CHECK_FOR(right, std::to_string(rows));
  }
}
