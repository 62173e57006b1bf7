#include "pattern_check.h"

#include <algorithm>
#include <atomic>

#include "parallel.h"

namespace fastlrp {
namespace {

constexpr int64_t kGrain = int64_t{1} << 14;  // numbers that are worth a thread
constexpr int64_t kBlock = int64_t{1} << 12;  // numbers whose descents 32 bits can count

std::string got(int64_t value, const char* what, int64_t at) {
  return "got " + std::to_string(value) + " " + what + " " + std::to_string(at);
}

// Whether check(begin, end) holds for parts that cover [0, count).
template <class Check>
bool all_parts(int64_t count, Check&& check) {
  std::atomic<bool> holds{true};
  parallel_for(count, kGrain, [&](int64_t begin, int64_t end) {
    if (!check(begin, end)) {
      holds.store(false, std::memory_order_relaxed);
    }
  });
  return holds;
}

// Whether each number is in [0, limit): the highest bit of x or of limit - 1 - x is set where it is not. Without a
// branch, so that compilers make vector instructions of it.
template <class Unsigned, class Signed>
bool all_below(const Signed* values, int64_t begin, int64_t end, int64_t limit) {
  const Unsigned last = static_cast<Unsigned>(limit) - 1;
  Unsigned bits = 0;
  for (int64_t i = begin; i < end; ++i) {
    const Unsigned value = static_cast<Unsigned>(values[i]);
    bits |= value | (last - value);
  }
  return bits >> (8 * sizeof(Unsigned) - 1) == 0;
}

// How often a number of [begin, end) is not above the one before it, which is in there too.
int64_t descents(const int32_t* values, int64_t begin, int64_t end) {
  int64_t total = 0;
  for (int64_t first = begin + 1; first < end; first += kBlock) {
    const int64_t last = std::min(end, first + kBlock);
    int32_t here = 0;
    for (int64_t i = first; i < last; ++i) {
      here += values[i] <= values[i - 1];
    }
    total += here;
  }
  return total;
}

bool never_descends(const int64_t* offsets, int64_t count) {
  return all_parts(count, [&](int64_t begin, int64_t end) {
    bool holds = true;
    for (int64_t i = begin; i < end; ++i) {
      holds &= offsets[i] <= offsets[i + 1];
    }
    return holds;
  });
}

// Whether channels ascend within each position of [begin, end): all descents are where a position begins.
bool ascends_within(const Pattern& p, int64_t begin, int64_t end) {
  const int64_t first = p.offsets[begin], last = p.offsets[end];
  int64_t allowed = 0;
  for (int64_t q = begin + 1; q < end; ++q) {
    const int64_t at = p.offsets[q];
    if (at > p.offsets[q - 1] && at < last) {
      allowed += p.channels[at] <= p.channels[at - 1];
    }
  }
  return descents(p.channels, first, last) == allowed;
}

std::string first_descent(const int64_t* offsets, int64_t count, const char* what) {
  for (int64_t i = 0; i < count; ++i) {
    if (offsets[i + 1] < offsets[i]) {
      return std::string(what) + " must not descend, " + got(offsets[i + 1], "after", offsets[i]) + " at " +
             std::to_string(i + 1);
    }
  }
  return {};
}

template <class Number>
std::string first_outside(const Number* values, int64_t count, int64_t limit, const char* what) {
  for (int64_t i = 0; i < count; ++i) {
    if (values[i] < 0 || values[i] >= limit) {
      return std::string(what) + " must be in [0, " + std::to_string(limit) + "), " + got(values[i], "at entry", i);
    }
  }
  return {};
}

}  // namespace

std::string pattern_fault(const Pattern& p, int64_t entries, int64_t limit) {
  if (p.offsets[0] != 0) {
    return "the first offset must be 0, got " + std::to_string(p.offsets[0]);
  }
  if (p.offsets[p.positions] != entries) {
    return "the last offset (" + std::to_string(p.offsets[p.positions]) + ") must be the number of channels (" +
           std::to_string(entries) + ")";
  }
  if (!never_descends(p.offsets, p.positions)) {
    return first_descent(p.offsets, p.positions, "offsets");
  }
  const bool inside = all_parts(
      entries, [&](int64_t begin, int64_t end) { return all_below<uint32_t>(p.channels, begin, end, limit); });
  if (!inside) {
    return first_outside(p.channels, entries, limit, "channels");
  }
  const bool ascending =
      all_parts(p.positions, [&](int64_t begin, int64_t end) { return ascends_within(p, begin, end); });
  for (int64_t q = 0; !ascending && q < p.positions; ++q) {
    for (int64_t e = p.offsets[q] + 1; e < p.offsets[q + 1]; ++e) {
      if (p.channels[e] <= p.channels[e - 1]) {
        return "channels must ascend within a position, " + got(p.channels[e], "after", p.channels[e - 1]) +
               " at entry " + std::to_string(e);
      }
    }
  }
  return {};
}

std::string rows_fault(const int64_t* rows, int64_t count, int64_t limit) {
  const bool inside =
      all_parts(count, [&](int64_t begin, int64_t end) { return all_below<uint64_t>(rows, begin, end, limit); });
  return inside ? std::string() : first_outside(rows, count, limit, "rows");
}

std::string starts_fault(const int64_t* starts, int64_t lists, int64_t rows) {
  if (starts[0] != 0) {
    return "the first start must be 0, got " + std::to_string(starts[0]);
  }
  if (starts[lists] != rows) {
    return "the last start (" + std::to_string(starts[lists]) + ") must be the number of rows (" +
           std::to_string(rows) + ")";
  }
  return never_descends(starts, lists) ? std::string() : first_descent(starts, lists, "starts");
}

}  // namespace fastlrp
