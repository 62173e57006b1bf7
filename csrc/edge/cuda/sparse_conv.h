#pragma once

#include "../sparse.h"

// The product of shared sparsity on CUDA tensors: csrc/edge/sparse.h has the same functions for the CPU. Float products
// are rounded to tf32 where PyTorch's switches allow it: torch.backends.cudnn's for convolutions,
// torch.backends.cuda.matmul's for linear layers.

namespace fastlrp::edge::cuda {

// weight (groups, Co, Ci, taps) -> (groups, taps, Co, Ci), as the kernel gathers it.
Tensor sparse_pack(const Tensor& weight);

// At most two products and, with factors, four folds. `other` is refused: all products of a rule are one here. A dense
// result (B, K, channels, *S) has its channels innermost in memory.
Tensor sparse_conv_relevance(const ConvCall& call);

}  // namespace fastlrp::edge::cuda
