#pragma once

#include <cstdint>
#include <string>

#include "sparse.h"

// Whether patterns and lists of rows that come from outside can be followed without leaving memory. A sweep of a few
// instructions per entry, where what moves relevance has some for each of the entry's targets.

namespace fastlrp {

// What is wrong with a pattern of `entries` channels, each below `limit`; empty if nothing is.
std::string pattern_fault(const Pattern& pattern, int64_t entries, int64_t limit);

// What is wrong with numbers of which each must be in [0, limit); empty if nothing is.
std::string rows_fault(const int64_t* rows, int64_t count, int64_t limit);

// What is wrong with the beginnings of lists, and behind them the last one's end, in something of `rows` elements.
std::string starts_fault(const int64_t* starts, int64_t lists, int64_t rows);

}  // namespace fastlrp
