// Checks of arguments that end in Python's exceptions, with messages made of their parts.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace fastlrp::edge {

struct TypeError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <class Error, class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw Error(text.str());
}

}  // namespace fastlrp::edge

// RuntimeError, ValueError and TypeError in Python.
#define REQUIRE(condition, ...) (static_cast<bool>(condition) ? void() : refuse<std::runtime_error>(__VA_ARGS__))
#define REQUIRE_VALUE(condition, ...) \
  (static_cast<bool>(condition) ? void() : refuse<std::invalid_argument>(__VA_ARGS__))
#define REQUIRE_TYPE(condition, ...) (static_cast<bool>(condition) ? void() : refuse<TypeError>(__VA_ARGS__))
