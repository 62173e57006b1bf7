#pragma once

#include <cstdint>

namespace fastlrp {

// Words of 64 bits that one sum is over.
constexpr int64_t kRowWords = 512;

// Whether `count` words, each `step` words after the last, are those that were kept.
bool same_words(const int64_t* words, int64_t step, int64_t count, const int64_t* kept);

// The sums, modulo 2^64, of rows that follow each other.
void row_sums(const int64_t* rows, int64_t count, int64_t* sums);

// Whether all are: no infinity and no NaN.
bool all_finite(const float* numbers, int64_t count);
bool all_finite(const double* numbers, int64_t count);

}  // namespace fastlrp
