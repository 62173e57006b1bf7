// Whether numbers are what they were, and whether they are finite: what every call asks, also of small networks.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "tensor.h"

namespace fastlrp::edge {

// Remembers the bits of some tensors on the CPU, and keeps these alive. Who asks makes sure before that they still have
// the memory that they had.
class Bits {
 public:
  // Parts are compared as they are: (N) of int64, with any step, or of uint8, contiguous. Of rows, contiguous (N, 512)
  // of int64, sums are remembered.
  Bits(std::vector<Tensor> parts, std::vector<Tensor> rows);

  // A look at all parts, and at the tensors of rows from number `first` on, round and round, until `bytes` are read:
  // the number of the tensor to begin with next time, or -1 if something differs.
  int64_t look(int64_t first, int64_t bytes) const;

 private:
  bool parts_differ() const;

  std::vector<Tensor> parts_, rows_;
  std::vector<std::vector<int64_t>> kept_, sums_;
};

// Whether all entries of a contiguous tensor of float32 or float64 on the CPU are finite; nothing for other tensors.
// Takes the tensor in Python, and needs the GIL: it reads no more of a tensor than it has to.
std::optional<bool> all_finite(void* tensor);

}  // namespace fastlrp::edge
