#pragma once

#include <cstdint>
#include <functional>

namespace fastlrp {

// Runs body(begin, end) over disjoint ranges that cover [0, count), none shorter than `grain` unless the last.
// Defined in edge/threads.cpp on the threads that PyTorch runs on, so that torch.set_num_threads holds here too. An
// exception in a body is thrown again in the caller's thread.
void parallel_for(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body);

// How many threads that uses at most. Also defined there.
int64_t thread_count();

}  // namespace fastlrp
