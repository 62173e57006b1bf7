// An instruction of AMX, taken apart, and how it is named in a message.
#pragma once

#include <ucontext.h>

#include <cstddef>
#include <cstdint>

#include "emulator.h"

namespace amx {

constexpr int kTiles = 8;

struct Decoded {
  Instruction instruction;
  const uint8_t* at;
  int length;
  int reg, rm, vvvv;       // tiles
  const uint8_t* address;  // of the operand in memory
  int64_t stride;          // what the index register holds, times its scale
  bool has_memory, has_sib;
  uint8_t extended, w, l;  // bits that have to be 0
};

// Of the three-byte VEX prefix and the map 0F38, which all have; false: another instruction.
bool decode(const ucontext_t* context, const uint8_t* at, Decoded& d);

// A message, put together without memory from elsewhere.
struct Line {
  char text[400];
  size_t size = 0;

  Line& operator<<(const char* more) {
    for (; *more != '\0' && size < sizeof text; ++more) {
      text[size++] = *more;
    }
    return *this;
  }
  Line& operator<<(int64_t value) {
    char digits[24];
    int n = 0;
    uint64_t rest = value < 0 ? -static_cast<uint64_t>(value) : static_cast<uint64_t>(value);
    do {
      digits[n++] = static_cast<char>('0' + rest % 10);
    } while ((rest /= 10) != 0);
    if (value < 0) {
      *this << "-";
    }
    while (n > 0) {
      const char one[] = {digits[--n], '\0'};
      *this << one;
    }
    return *this;
  }
  Line& hex(uint64_t value) {
    *this << "0x";
    int shift = 60;
    while (shift > 0 && (value >> shift & 15) == 0) {
      shift -= 4;
    }
    for (; shift >= 0; shift -= 4) {
      const char one[] = {"0123456789abcdef"[value >> shift & 15], '\0'};
      *this << one;
    }
    return *this;
  }
  Line& tile(int t) { return *this << "tmm" << int64_t{t}; }
};

// Name and operands, as Intel writes them.
void describe(Line& line, const Decoded& d);

}  // namespace amx
