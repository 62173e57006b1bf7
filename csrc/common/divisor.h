#pragma once

#include <cstdint>

#include "host_device.h"

namespace fastlrp {

// Division by a number that a whole kernel shares, as a product: a GPU divides 32 bits in some 20 instructions, and
// this takes 5. Exact for every numerator (Granlund and Montgomery 1994, with the 33-bit multiplier's highest bit added
// by hand).
struct Divisor {
  uint32_t value = 1, multiplier = 1, shift = 0;

  Divisor() = default;

  // value is at least 1
  explicit Divisor(int64_t number) : value(static_cast<uint32_t>(number)) {
    while (shift < 32 && (uint64_t{1} << shift) < value) {
      ++shift;
    }
    multiplier = static_cast<uint32_t>((((uint64_t{1} << shift) - value) << 32) / value + 1);
  }

  FASTLRP_HOST_DEVICE uint32_t divide(uint32_t n) const {
    return static_cast<uint32_t>(((uint64_t{multiplier} * n >> 32) + n) >> shift);
  }

  FASTLRP_HOST_DEVICE uint64_t divide_wide(uint64_t n) const {
    return n >> 32 == 0 ? divide(static_cast<uint32_t>(n)) : n / value;
  }
};

}  // namespace fastlrp
