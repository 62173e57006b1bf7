// Which patterns and rows on a GPU are known to be sound: to look at one the host waits for the device.
#pragma once

#include "../tensors.h"

namespace fastlrp::edge::cuda {

// Those that our own kernels made, and those that were looked at, for as long as their memory lives and PyTorch's
// version counters say that it has not been written. A tensor without such a counter (made in inference mode) is looked
// at each time.
Known& looked_at();

}  // namespace fastlrp::edge::cuda
