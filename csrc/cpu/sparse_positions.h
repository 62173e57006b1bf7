// Work over the positions of a pattern, in parallel.
#pragma once

#include "../common/parallel.h"

namespace fastlrp::cpu {

constexpr int64_t kGrain = 64;  // positions; each is a few hundred channels

// f(position, its sample, its place in the sample) for all positions, in parallel.
template <class Body>
void over_positions(int64_t batch, int64_t spatial, Body&& body) {
  parallel_for(batch * spatial, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t q = begin; q < end; ++q) {
      body(q, q / spatial, q % spatial);
    }
  });
}

}  // namespace fastlrp::cpu
