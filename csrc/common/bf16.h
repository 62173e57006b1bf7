#pragma once

#include <cstdint>
#include <cstring>

#include "isa.h"

namespace fastlrp {

// The upper half of a float. Sums and products are float's; storing rounds to the nearest, ties to even.
struct Bf16 {
  uint16_t bits;

  Bf16() = default;
  FASTLRP_INLINE explicit Bf16(float value) : bits(rounded(value)) {}

  FASTLRP_INLINE operator float() const {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
  }
  FASTLRP_INLINE Bf16& operator+=(float value) {
    bits = rounded(static_cast<float>(*this) + value);
    return *this;
  }

 private:
  // Without branches, so that a loop over it vectorises.
  FASTLRP_INLINE static uint16_t rounded(float value) {
    uint32_t wide;
    std::memcpy(&wide, &value, sizeof wide);
    const uint32_t nearest = (wide + 0x7fff + ((wide >> 16) & 1)) >> 16;
    const bool is_nan = (wide & 0x7fffffff) > 0x7f800000;
    return static_cast<uint16_t>(is_nan ? 0x7fc0 : nearest);
  }
};

static_assert(sizeof(Bf16) == 2, "as PyTorch's bfloat16 lies in memory");

}  // namespace fastlrp
