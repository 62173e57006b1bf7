#include "windows.h"

#include <algorithm>
#include <numeric>

namespace fastlrp {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

Windows sized(int64_t inputs, int64_t outputs) {
  Windows w{static_cast<int32_t>(inputs), static_cast<int32_t>(outputs)};
  w.begin.resize(outputs);
  w.taps.resize(outputs);
  w.first.resize(inputs);
  w.count.resize(inputs);
  w.weight.assign(outputs, 1.0);
  return w;
}

// The inputs' side, once the windows are known.
void finish(Windows& w) {
  for (int32_t o = 0; o < w.outputs; ++o) {
    w.most_taps = std::max(w.most_taps, w.taps[o]);
    for (int32_t j = 0; j < w.taps[o]; ++j) {
      const int64_t i = w.begin[o] + int64_t{j} * w.dilation;
      if (w.count[i] == 0) {
        w.first[i] = o;
      }
      w.most_count = std::max(w.most_count, ++w.count[i]);
    }
  }
}

}  // namespace

Windows pool_windows(int64_t inputs, int64_t outputs, int64_t kernel, int64_t stride, int64_t padding,
                     int64_t dilation) {
  Windows w = sized(inputs, outputs);
  w.dilation = static_cast<int32_t>(dilation);
  // o and o' share an input only where (o' - o) stride is a multiple of dilation.
  w.step = static_cast<int32_t>(dilation / std::gcd(dilation, stride));
  for (int64_t o = 0; o < outputs; ++o) {
    const int64_t start = o * stride - padding;
    const int64_t skipped = start < 0 ? ceil_div(-start, dilation) : 0;
    const int64_t end = std::min(kernel, start < inputs ? ceil_div(inputs - start, dilation) : 0);
    if (skipped < end) {
      w.begin[o] = static_cast<int32_t>(start + skipped * dilation);
      w.taps[o] = static_cast<int32_t>(end - skipped);
    }
  }
  finish(w);
  return w;
}

Windows average_windows(int64_t inputs, int64_t outputs, int64_t kernel, int64_t stride, int64_t padding,
                        bool count_include_pad) {
  Windows w = pool_windows(inputs, outputs, kernel, stride, padding, 1);
  for (int64_t o = 0; o < outputs; ++o) {
    const int64_t start = o * stride - padding;
    const int64_t padded = std::min(start + kernel, inputs + padding) - start;
    w.weight[o] = w.taps[o] == 0 ? 0.0 : 1.0 / static_cast<double>(count_include_pad ? padded : w.taps[o]);
  }
  return w;
}

Windows adaptive_windows(int64_t inputs, int64_t outputs) {
  Windows w = sized(inputs, outputs);
  for (int64_t o = 0; o < outputs; ++o) {
    const int64_t begin = o * inputs / outputs, end = ceil_div((o + 1) * inputs, outputs);
    w.begin[o] = static_cast<int32_t>(begin);
    w.taps[o] = static_cast<int32_t>(end - begin);
    w.weight[o] = end > begin ? 1.0 / static_cast<double>(end - begin) : 0.0;
  }
  finish(w);
  return w;
}

}  // namespace fastlrp
