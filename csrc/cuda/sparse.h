#pragma once

#include <cstdint>

#include "../common/pattern.h"
#include "../common/sparse.h"

// Shared sparsity on the device, in the structs of common/sparse.h. All pointers are the device's, and all structs are
// passed to kernels by value.

namespace fastlrp::cuda {

using fastlrp::DenseMap;
using fastlrp::kLanes;
using fastlrp::Map;
using fastlrp::Mask;
using fastlrp::Pattern;
using fastlrp::Product;
using fastlrp::Rows;
using fastlrp::Summand;
using Window = WindowOf<int32_t>;

// What a kernel reads and writes at once. Rows that we make are aligned to as many; narrowed ones (some of the targets)
// need not be.
constexpr int64_t kVectorBytes = 16;

}  // namespace fastlrp::cuda
