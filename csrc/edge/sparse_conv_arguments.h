// The arguments of the product of shared sparsity, checked, for the kernels of any device.
#pragma once

#include "sparse_arguments.h"

namespace fastlrp::edge {

// How a device's kernel has a convolution's weight packed.
struct Packing {
  int64_t axes, taps_axis;
  Sizes (*size)(int64_t groups, int64_t outs, int64_t ins, int64_t taps);  // outs and ins: channels per group
  bool narrow = false;                                                     // of bfloat16, linear layers' too
  bool takes_turned = false;                                               // see ConvArguments::turned
};

struct ConvArguments {
  WindowOf<int64_t> window;
  int64_t taps, groups, outs, ins;
  bool linear, turned;  // turned: a linear layer's weight lies in memory with its outputs side by side
  std::vector<Tensor> coefficients, factors;
  Tensor other;  // not defined where there is none
  Pattern arriving, leaving;
  int64_t entries, folds = 1;
  std::optional<Summands> initial;

  ConvArguments(const Check& check, const ConvCall& call, const Packing& packing);
};

}  // namespace fastlrp::edge
