#pragma once

#include <cstdint>
#include <vector>

namespace fastlrp {

// The windows of a pool along one spatial axis (axis.h) as tables. Window o reads the inputs begin[o] + j * dilation,
// 0 <= j < taps[o]; input i stands in the windows first[i] + j * step, 0 <= j < count[i]. Padding is in neither.
struct Windows {
  int32_t inputs, outputs;
  int32_t dilation = 1, step = 1;
  std::vector<int32_t> begin, taps;   // per output
  std::vector<int32_t> first, count;  // per input
  std::vector<double> weight;         // per output: what an average gives to each entry; 1 for pool_windows
};

// All numbers are below 2^31, sizes are not negative, kernel, stride and dilation at least 1.
Windows pool_windows(int64_t inputs, int64_t outputs, int64_t kernel, int64_t stride, int64_t padding,
                     int64_t dilation);

// As PyTorch counts: with count_include_pad up to the padded edge, over which a window of ceil_mode may hang.
Windows average_windows(int64_t inputs, int64_t outputs, int64_t kernel, int64_t stride, int64_t padding,
                        bool count_include_pad);

// Window o covers floor(o inputs / outputs) to ceil((o + 1) inputs / outputs).
Windows adaptive_windows(int64_t inputs, int64_t outputs);

}  // namespace fastlrp
