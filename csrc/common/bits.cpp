#include "bits.h"

#include <cstring>

#include "isa.h"
#include "parallel.h"

namespace fastlrp {
namespace {

constexpr int64_t kRowsOfThread = 512;  // 2 MB

struct RowSums {
  FASTLRP_INLINE static void run(const int64_t* rows, int64_t count, int64_t* sums) {
    for (int64_t row = 0; row < count; ++row) {
      const uint64_t* words = reinterpret_cast<const uint64_t*>(rows) + row * kRowWords;
      uint64_t sum = 0;  // Unsigned numbers may wrap round.
      for (int64_t i = 0; i < kRowWords; ++i) {
        sum += words[i];
      }
      sums[row] = static_cast<int64_t>(sum);
    }
  }
};

// A number is finite unless its exponent has ones alone: without its sign it is then as large as infinity or larger.
template <class Word, Word kInfinity, class Number>
struct Finite {
  static_assert(sizeof(Word) == sizeof(Number));

  FASTLRP_INLINE static void run(const Number* numbers, int64_t count, bool* finite) {
    constexpr Word kWithoutSign = static_cast<Word>(~Word{0}) >> 1;
    Word wrong = 0;
    for (int64_t i = 0; i < count; ++i) {
      Word word;
      std::memcpy(&word, numbers + i, sizeof(Word));
      wrong |= static_cast<Word>((word & kWithoutSign) >= kInfinity);
    }
    *finite = wrong == 0;
  }
};

template <class Word, Word kInfinity, class Number>
bool finite(const Number* numbers, int64_t count) {
  bool found = true;
  run_best<Finite<Word, kInfinity, Number>>(numbers, count, &found);
  return found;
}

}  // namespace

bool same_words(const int64_t* words, int64_t step, int64_t count, const int64_t* kept) {
  if (step == 1) {
    return std::memcmp(words, kept, static_cast<size_t>(count) * sizeof(int64_t)) == 0;
  }
  uint64_t different = 0;
  for (int64_t i = 0; i < count; ++i) {
    different |= static_cast<uint64_t>(words[i * step] ^ kept[i]);
  }
  return different == 0;
}

void row_sums(const int64_t* rows, int64_t count, int64_t* sums) {
  parallel_for(count, kRowsOfThread, [=](int64_t begin, int64_t end) {
    run_best<RowSums>(rows + begin * kRowWords, end - begin, sums + begin);
  });
}

bool all_finite(const float* numbers, int64_t count) { return finite<uint32_t, 0x7f800000u>(numbers, count); }

bool all_finite(const double* numbers, int64_t count) { return finite<uint64_t, 0x7ff0000000000000u>(numbers, count); }

}  // namespace fastlrp
