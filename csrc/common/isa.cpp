#include "isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace fastlrp {
namespace {

Isa best() {
#if FASTLRP_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return Isa::avx512;
  }
  if (avx2) {
    return Isa::avx2;
  }
#endif
  return Isa::portable;
}

Isa parse(const std::string& name) {
  if (name == "auto") {
    return best();
  }
  std::string available;
  for (const std::string& candidate : available_isas()) {
    available += " '" + candidate + "'";
  }
  for (const Isa candidate : {Isa::portable, Isa::avx2, Isa::avx512}) {
    if (name == isa_name(candidate) && candidate <= best()) {
      return candidate;
    }
  }
  throw std::invalid_argument("isa: expected 'auto' or one that this machine has (" + available.substr(1) + "), got '" +
                              name + "'");
}

std::atomic<Isa>& chosen() {
  static std::atomic<Isa> value = [] {
    const char* name = std::getenv("FASTLRP_ISA");
    return parse(name == nullptr || *name == '\0' ? "auto" : name);
  }();
  return value;
}

}  // namespace

Isa isa() { return chosen().load(std::memory_order_relaxed); }

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    default:
      return "portable";
  }
}

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Isa candidate : {Isa::portable, Isa::avx2, Isa::avx512}) {
    if (candidate <= best()) {
      names.emplace_back(isa_name(candidate));
    }
  }
  return names;
}

void set_isa(const std::string& name) { chosen().store(parse(name), std::memory_order_relaxed); }

}  // namespace fastlrp
