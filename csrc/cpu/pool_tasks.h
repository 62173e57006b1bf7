#pragma once

// How the pools share out their work, and the sizes that they count it by.

#include <algorithm>
#include <cstdint>

#include "../common/planes.h"
#include "../common/windows.h"

namespace fastlrp::cpu {

// Below this many written elements a second thread costs more than it saves (2 cores, AVX-512 Xeon).
constexpr int64_t kGrain = 32768;
// Where there are fewer tasks than this, one is cut into several.
constexpr int64_t kEnoughTasks = 16;

template <class T>
void clear(T* out, int64_t size) {
  std::fill(out, out + size, T(0));
}

inline int64_t tasks_per_grain(int64_t elements_per_task) {
  return std::max<int64_t>(1, kGrain / (elements_per_task + 1));
}

inline int64_t groups_of(int64_t channels) { return (channels + kPlanes - 1) / kPlanes; }
inline int64_t inputs_of(const Windows* axes) { return int64_t{axes[0].inputs} * axes[1].inputs * axes[2].inputs; }
inline int64_t outputs_of(const Windows* axes) { return int64_t{axes[0].outputs} * axes[1].outputs * axes[2].outputs; }

}  // namespace fastlrp::cpu
