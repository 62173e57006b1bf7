#include "build_info.h"

#include "bf16_unit.h"
#include "isa.h"

#if defined(__clang__)
#define FASTLRP_COMPILER __VERSION__
#else
#define FASTLRP_COMPILER "GCC " __VERSION__
#endif
// setup.py says both.
#ifndef FASTLRP_FLAGS
#define FASTLRP_FLAGS "unknown"
#endif
#ifndef FASTLRP_CUDA
#define FASTLRP_CUDA "not built"
#endif

namespace fastlrp {

std::map<std::string, std::string> build_info() {
  std::string isas;
  for (const std::string& name : available_isas()) {
    isas += (isas.empty() ? "" : ", ") + name;
  }
  return {{"compiler", FASTLRP_COMPILER},
          {"flags", FASTLRP_FLAGS},
#ifdef _OPENMP
          {"threads", "OpenMP, PyTorch's pool"},
#else
          {"threads", "none: built without OpenMP"},
#endif
          {"instruction sets", isas},
          {"instruction set in use", isa_name(isa())},
          {"bfloat16 by", bf16_unit_name(bf16_unit())},
          {"cuda", FASTLRP_CUDA}};
}

}  // namespace fastlrp
