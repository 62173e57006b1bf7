#include "bf16_unit.h"

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <stdexcept>

#if FASTLRP_X86_BF16
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace fastlrp {
namespace {

constexpr Bf16Unit kUnits[] = {Bf16Unit::software, Bf16Unit::software_tiles, Bf16Unit::avx512_bf16, Bf16Unit::amx};

bool has_isa_avx512() {
  for (const std::string& name : available_isas()) {
    if (name == isa_name(Isa::avx512)) {
      return true;
    }
  }
  return false;
}

#if FASTLRP_X86_BF16
bool has_avx512_bf16() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return has_isa_avx512() && __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a & (1u << 5)) != 0;
}

// What the operating system keeps when it changes threads.
uint64_t saved_state() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c & (1u << 27)) == 0) {
    return 0;
  }
  uint32_t low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
}

// Linux gives the memory for tiles to a process that asks for it, once for all of its threads.
bool may_use_tiles() {
#if defined(__linux__)
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, the number of the state
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}

bool has_amx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr uint64_t kTiles = uint64_t{3} << 17;
  return has_isa_avx512() && __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & (1u << 22)) != 0 &&
         (d & (1u << 24)) != 0 && (saved_state() & kTiles) == kTiles && may_use_tiles();
}
#endif

bool is_there(Bf16Unit unit) {
#if FASTLRP_X86_BF16
  static const bool avx512 = has_avx512_bf16(), amx = has_amx();
  if (unit == Bf16Unit::avx512_bf16) {
    return avx512;
  }
  if (unit == Bf16Unit::amx) {
    return amx;
  }
#endif
  return unit == Bf16Unit::software || unit == Bf16Unit::software_tiles;
}

Bf16Unit parse(const std::string& name) {
  if (name == "auto") {
    const bool wide = isa() == Isa::avx512;
    return wide && is_there(Bf16Unit::amx)           ? Bf16Unit::amx
           : wide && is_there(Bf16Unit::avx512_bf16) ? Bf16Unit::avx512_bf16
                                                     : Bf16Unit::software;
  }
  std::string available;
  for (const Bf16Unit unit : kUnits) {
    if (is_there(unit)) {
      available += std::string(" '") + bf16_unit_name(unit) + "'";
      if (name == bf16_unit_name(unit)) {
        return unit;
      }
    }
  }
  throw std::invalid_argument("bf16 unit: expected 'auto' or one that this machine has (" + available.substr(1) +
                              "), got '" + name + "'");
}

std::atomic<Bf16Unit>& chosen() {
  static std::atomic<Bf16Unit> value = [] {
    const char* name = std::getenv("FASTLRP_BF16_UNIT");
    return parse(name == nullptr || *name == '\0' ? "auto" : name);
  }();
  return value;
}

}  // namespace

Bf16Unit bf16_unit() { return chosen().load(std::memory_order_relaxed); }

const char* bf16_unit_name(Bf16Unit unit) {
  switch (unit) {
    case Bf16Unit::amx:
      return "amx";
    case Bf16Unit::avx512_bf16:
      return "avx512_bf16";
    case Bf16Unit::software_tiles:
      return "software_tiles";
    default:
      return "software";
  }
}

std::vector<std::string> available_bf16_units() {
  std::vector<std::string> names;
  for (const Bf16Unit unit : kUnits) {
    if (is_there(unit)) {
      names.emplace_back(bf16_unit_name(unit));
    }
  }
  return names;
}

void set_bf16_unit(const std::string& name) { chosen().store(parse(name), std::memory_order_relaxed); }

}  // namespace fastlrp
