// What multiplies bfloat16 on this processor, chosen at run time.
#pragma once

#include <string>
#include <vector>

#include "isa.h"

#if FASTLRP_X86 && ((defined(__clang__) && __clang_major__ >= 12) || (!defined(__clang__) && __GNUC__ >= 11))
#define FASTLRP_X86_BF16 1
#define FASTLRP_TARGET_AVX512_BF16 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")))
#define FASTLRP_TARGET_AMX __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,amx-tile,amx-bf16,avx2,fma")))
#else
#define FASTLRP_X86_BF16 0
#endif

namespace fastlrp {

// `software` gives the bits of AVX512-BF16, `software_tiles` computes what AMX would with tiles in memory: they define
// what the others compute, and let each path be tested on a processor without its unit.
enum class Bf16Unit { software, software_tiles, avx512_bf16, amx };

Bf16Unit bf16_unit();
const char* bf16_unit_name(Bf16Unit unit);

// Whether it computes by tiles, which want the weights with output channels innermost.
inline bool has_tiles(Bf16Unit unit) { return unit == Bf16Unit::software_tiles || unit == Bf16Unit::amx; }

// Slowest first. "software" is what "auto" takes where there is neither AVX512-BF16 nor AMX.
std::vector<std::string> available_bf16_units();

// Chooses one of available_bf16_units(), or "auto"; throws std::invalid_argument for any other. FASTLRP_BF16_UNIT does
// the same from the environment. With FASTLRP_ISA below avx512, "auto" is "software".
void set_bf16_unit(const std::string& name);

}  // namespace fastlrp
