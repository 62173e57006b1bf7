// Executes the machine code of AMX on a processor that does not have it: each instruction raises SIGILL, whose handler
// does in memory what Intel's Software Developer's Manual says of it. Linked to a program, or loaded before all other
// libraries (LD_PRELOAD). A test only; nothing of it is in the extension.
//
// A use for which the processor would raise #UD or #GP, and one without the system's permission, ends the process with
// the status kViolation, after a line on the standard error that the process began with, which names the instruction,
// its operands and the reason.
#pragma once

#include <cstdint>

namespace amx {

constexpr int kViolation = 86;

enum Instruction {
  ldtilecfg,
  sttilecfg,
  tilerelease,
  tilezero,
  tileloadd,
  tileloaddt1,
  tilestored,
  tdpbf16ps,
  kInstructions
};

}  // namespace amx

extern "C" {

// Takes the signal; done once at the start, and to be repeated where somebody else took it since.
void amx_emulator_install();

// Writes UD2 over the instructions CPUID and XGETBV at these places of a loaded library, so that they tell of AMX too:
// `offsets` from where the library begins, ascending; 0, or -1 where there is another instruction or no such library.
int amx_emulator_patch(const char* library, const uint64_t* offsets, int count);

// How many of each amx::Instruction were executed, by all threads.
void amx_emulator_counts(uint64_t counts[amx::kInstructions]);

// Threads whose tiles are configured now, and those that ever configured any.
int amx_emulator_configured();
int amx_emulator_threads();

// What this thread's tiles are configured to, as LDTILECFG reads and STTILECFG writes it: 64 bytes.
void amx_emulator_load_configuration(const void* configuration);
void amx_emulator_store_configuration(void* configuration);

// From now on the `count`-th request for aligned memory (`operator new` with an alignment) by threads whose tiles are
// configured fails, once.
void amx_emulator_fail_allocation(int count);
}
