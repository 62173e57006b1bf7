#pragma once

#include <string>
#include <utility>
#include <vector>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define FASTLRP_X86 1
#define FASTLRP_TARGET_AVX2 __attribute__((target("avx2,fma")))
#define FASTLRP_TARGET_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")))
#else
#define FASTLRP_X86 0
#endif

#if defined(__GNUC__) || defined(__clang__)
#define FASTLRP_INLINE inline __attribute__((always_inline))
#else
#define FASTLRP_INLINE inline
#endif

namespace fastlrp {

// "portable" is what the compiler's baseline gives: SSE2 on x86-64, NEON on 64-bit Arm.
enum class Isa { portable = 0, avx2 = 1, avx512 = 2 };

Isa isa();
const char* isa_name(Isa isa);
std::vector<std::string> available_isas();

// Chooses one of available_isas(), or "auto"; throws std::invalid_argument for any other. FASTLRP_ISA does the same
// from the environment.
void set_isa(const std::string& name);

#if FASTLRP_X86
template <class Body, class... Args>
FASTLRP_TARGET_AVX2 void run_avx2(Args... args) {
  Body::run(args...);
}

template <class Body, class... Args>
FASTLRP_TARGET_AVX512 void run_avx512(Args... args) {
  Body::run(args...);
}
#endif

// Body::run, which must be FASTLRP_INLINE, compiled once per instruction set and chosen at run time. Lambdas inside it
// would not inherit the instruction set: plain loops only.
template <class Body, class... Args>
void run_best(Args... args) {
#if FASTLRP_X86
  switch (isa()) {
    case Isa::avx512:
      return run_avx512<Body>(args...);
    case Isa::avx2:
      return run_avx2<Body>(args...);
    default:
      break;
  }
#endif
  Body::run(args...);
}

}  // namespace fastlrp
