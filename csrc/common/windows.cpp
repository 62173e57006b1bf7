#include "windows.h"

#include "axis.h"

namespace fastlrp {
namespace {

template <class Line>
Windows tabulated(const Line& axis) {
  Windows w{axis.inputs, axis.outputs};
  w.begin.resize(w.outputs), w.taps.resize(w.outputs);
  w.first.resize(w.inputs), w.count.resize(w.inputs);
  for (int32_t o = 0; o < w.outputs; ++o) {
    const Span held = axis.inputs_of(o);
    w.begin[o] = held.first, w.taps[o] = held.count;
  }
  for (int32_t i = 0; i < w.inputs; ++i) {
    const Span holding = axis.outputs_of(i);
    w.first[i] = holding.first, w.count[i] = holding.count;
  }
  w.weight.assign(w.outputs, 1.0);
  return w;
}

double share(int64_t averaged) { return averaged == 0 ? 0.0 : 1.0 / static_cast<double>(averaged); }

}  // namespace

Windows pool_windows(int64_t inputs, int64_t outputs, int64_t kernel, int64_t stride, int64_t padding,
                     int64_t dilation) {
  const Axis axis(inputs, outputs, kernel, stride, padding, dilation);
  Windows w = tabulated(axis);
  w.dilation = axis.dilation;
  w.step = axis.step;
  return w;
}

Windows average_windows(int64_t inputs, int64_t outputs, int64_t kernel, int64_t stride, int64_t padding,
                        bool count_include_pad) {
  const Axis axis(inputs, outputs, kernel, stride, padding, 1);
  Windows w = tabulated(axis);
  for (int32_t o = 0; o < w.outputs; ++o) {
    w.weight[o] = share(axis.averaged(o, count_include_pad));
  }
  return w;
}

Windows adaptive_windows(int64_t inputs, int64_t outputs) {
  const AdaptiveAxis axis(inputs, outputs);
  Windows w = tabulated(axis);
  for (int32_t o = 0; o < w.outputs; ++o) {
    w.weight[o] = share(axis.averaged(o));
  }
  return w;
}

}  // namespace fastlrp
