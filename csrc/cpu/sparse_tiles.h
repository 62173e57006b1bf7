// The inner product on bfloat16 by tiles of 16 x 16 sums: AMX, and the same control flow over tiles in memory.
#pragma once

#include <cstdint>
#include <cstring>

namespace fastlrp::cpu {

struct PairsKernel;

// By AMX, or by tiles in memory.
PairsKernel tiles_kernel(bool by_amx);

// What numbers that are not normal count as for the instructions that multiply bfloat16.
inline float flushed(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7f800000u) == 0) {
    bits &= 0x80000000u;
    std::memcpy(&value, &bits, sizeof value);
  }
  return value;
}

}  // namespace fastlrp::cpu
