// What the native tests need: TEST(name) { … CHECK(condition); … } in any .cpp file of this folder is run by main.cpp,
// once per instruction set and number of threads. Allocate buffers of exactly the size that a kernel may touch: then
// the address sanitizer sees the first byte beyond.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "../../csrc/common/isa.h"

namespace native {

struct Case {
  const char* name;
  void (*run)();
};

inline std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

struct Registration {
  Registration(const char* name, void (*run)()) { cases().push_back({name, run}); }
};

[[noreturn]] inline void fail(const char* file, int line, const std::string& what) {
  std::fprintf(stderr, "%s:%d: %s\n", file, line, what.c_str());
  std::exit(1);
}

// SplitMix64 (Steele, Lea and Flood 2014): under the sanitizers the standard engines take most of the time.
inline uint64_t& seed() {
  static uint64_t state = 0;
  return state;
}

inline uint64_t random() {
  uint64_t z = seed() += 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

inline int64_t integer(int64_t least, int64_t most) {
  return least + static_cast<int64_t>(random() % static_cast<uint64_t>(most - least + 1));
}

// In [-2, 2), about every fifth exactly 0.
template <class T>
std::vector<T> mixed(int64_t size) {
  std::vector<T> values(size);
  for (T& value : values) {
    const double uniform = static_cast<double>(random() >> 11) * 0x1p-53;
    value = static_cast<T>(uniform < 0.2 ? 0.0 : 5 * uniform - 3);
  }
  return values;
}

// What a kernel has to write.
template <class T>
std::vector<T> poisoned(int64_t size) {
  return std::vector<T>(size, std::numeric_limits<T>::quiet_NaN());
}

// Up to rounding, as a part of the largest expected number or of 1. Worst measured: 1.6e-7 and 3.1e-16.
template <class T>
bool close(const std::vector<T>& got, const std::vector<double>& expected) {
  if (got.size() != expected.size()) {
    return false;
  }
  double largest = 1;
  for (const double value : expected) {
    largest = std::max(largest, std::abs(value));
  }
  const double bound = largest * (sizeof(T) == sizeof(float) ? 1e-6 : 2e-15);
  for (size_t i = 0; i < got.size(); ++i) {
    if (!(std::abs(static_cast<double>(got[i]) - expected[i]) <= bound)) {
      return false;
    }
  }
  return true;
}

// Whether a test's numbers are what they were on another number of threads, bit for bit.
template <class T>
bool on_any_threads(const std::string& name, const std::vector<T>& values) {
  static std::map<std::string, std::vector<T>> known;
  const std::vector<T>& first = known.emplace(fastlrp::isa_name(fastlrp::isa()) + (" " + name), values).first->second;
  return first.size() == values.size() &&
         (values.empty() || std::memcmp(first.data(), values.data(), values.size() * sizeof(T)) == 0);
}

}  // namespace native

#define TEST(name)                                                  \
  static void name();                                               \
  static const native::Registration registered_##name(#name, name); \
  static void name()

#define CHECK(condition) CHECK_FOR(condition, "")

// `context`, a std::string, says for which arguments.
#define CHECK_FOR(condition, context)                                                       \
  do {                                                                                      \
    if (!(condition)) {                                                                     \
      native::fail(__FILE__, __LINE__, std::string("failed: " #condition " ") + (context)); \
    }                                                                                       \
  } while (false)
