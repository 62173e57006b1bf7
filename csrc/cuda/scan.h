#pragma once

#include <cstdint>

#include "device.h"

// Where each of many lists begins, from how long they are.

namespace fastlrp::cuda {

// Numbers that a scan of so many counts needs besides; 0 for as many as one block takes.
int64_t scan_scratch(int64_t count);

// counts[i] becomes the sum of those before it, counts[count] the sum of all: one launch for up to 2048 counts, three
// for up to 4 million, two more for each factor of 2048. Integers: the same in any order of adding.
void exclusive_scan(int64_t* counts /* (count + 1) */, int64_t count, int64_t* scratch, Stream stream);

}  // namespace fastlrp::cuda
