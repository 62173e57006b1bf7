#include "decode.h"

#include <cstring>

namespace amx {
namespace {

constexpr const char* kNames[] = {"ldtilecfg", "sttilecfg",   "tilerelease", "tilezero",
                                  "tileloadd", "tileloaddt1", "tilestored",  "tdpbf16ps"};

uint64_t read_register(const ucontext_t* context, int number) {
  constexpr int kOrder[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                            REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
  return static_cast<uint64_t>(context->uc_mcontext.gregs[kOrder[number]]);
}

template <class T>
T read_memory(const uint8_t* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

// ModRM, SIB and displacement, at p; returns what is behind them.
const uint8_t* operand(const ucontext_t* context, const uint8_t* p, bool x, bool b, Decoded& d) {
  const int mod = *p >> 6, rm = *p & 7;
  d.reg = *p++ >> 3 & 7;
  d.rm = rm;
  d.has_memory = mod != 3;
  if (!d.has_memory) {
    return p;
  }
  uint64_t address = 0;
  bool from_next = false, wide = mod == 2;
  d.has_sib = rm == 4;
  if (d.has_sib) {
    const int scale = *p >> 6, index = (*p >> 3 & 7) | (x ? 8 : 0), base = *p & 7;
    ++p;
    if (index != 4) {
      d.stride = static_cast<int64_t>(read_register(context, index) << scale);
    }
    if (base == 5 && mod == 0) {
      wide = true;
    } else {
      address = read_register(context, base | (b ? 8 : 0));
    }
  } else if (rm == 5 && mod == 0) {
    wide = from_next = true;
  } else {
    address = read_register(context, rm | (b ? 8 : 0));
  }
  if (wide) {
    address += static_cast<uint64_t>(int64_t{read_memory<int32_t>(p)});
    p += 4;
  } else if (mod == 1) {
    address += static_cast<uint64_t>(int64_t{read_memory<int8_t>(p)});
    ++p;
  }
  if (from_next) {
    address += reinterpret_cast<uint64_t>(p);
  }
  d.address = reinterpret_cast<const uint8_t*>(address);
  return p;
}

}  // namespace

bool decode(const ucontext_t* context, const uint8_t* at, Decoded& d) {
  if (at[0] != 0xc4 || (at[1] & 0x1f) != 2) {
    return false;
  }
  enum { none, p66, pf3, pf2 };
  const int pp = at[2] & 3, opcode = at[3];
  const bool r = (at[1] & 0x80) == 0, x = (at[1] & 0x40) == 0, b = (at[1] & 0x20) == 0;
  d = Decoded{};
  d.at = at;
  d.vvvv = ~at[2] >> 3 & 15;
  d.w = at[2] >> 7;
  d.l = at[2] >> 2 & 1;
  d.length = static_cast<int>(operand(context, at + 4, x, b, d) - at);
  const bool memory = d.has_memory;
  if (opcode == 0x49 && memory && (pp == none || pp == p66) && d.reg == 0) {
    d.instruction = pp == none ? ldtilecfg : sttilecfg;
  } else if (opcode == 0x49 && at[4] == 0xc0 && pp == none) {
    d.instruction = tilerelease;
  } else if (opcode == 0x49 && !memory && pp == pf2 && d.rm == 0) {
    d.instruction = tilezero;
  } else if (opcode == 0x4b && memory && pp != none) {
    d.instruction = pp == pf2 ? tileloadd : pp == p66 ? tileloaddt1 : tilestored;
  } else if (opcode == 0x5c && !memory && pp == pf3) {
    d.instruction = tdpbf16ps;
  } else {
    return false;
  }
  // Of three operands that are tiles none has an extension; of two in memory those of the address have.
  d.extended = r || (!memory && (x || b)) || (d.instruction == tdpbf16ps && d.vvvv >= kTiles);
  return true;
}

void describe(Line& line, const Decoded& d) {
  line << kNames[d.instruction] << " ";
  const auto memory = [&] {
    line << "[";
    line.hex(reinterpret_cast<uint64_t>(d.address));
    if (d.instruction >= tileloadd) {
      line << " + " << d.stride << " a row";
    }
    line << "]";
  };
  switch (d.instruction) {
    case tdpbf16ps:
      line.tile(d.reg) << ", ";
      line.tile(d.rm) << ", ";
      line.tile(d.vvvv);
      break;
    case tilezero:
      line.tile(d.reg);
      break;
    case tilestored:
      memory();
      line << ", ";
      line.tile(d.reg);
      break;
    case tileloadd:
    case tileloaddt1:
      line.tile(d.reg) << ", ";
      memory();
      break;
    case tilerelease:
      break;
    default:
      memory();
  }
}

}  // namespace amx
