// The tiles of a thread, and what the instructions do with them.
#pragma once

#include <cstdint>

#include "decode.h"

namespace amx {

void execute(const Decoded& d);

// Linux gives the memory for tiles to a process that asked for it.
void permit();

bool are_configured();  // of this thread

// Where messages go, and from where they count the places of instructions.
void report_to(int file, const uint8_t* library);

}  // namespace amx
