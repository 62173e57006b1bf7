// What is known of tensors without a look at their numbers: where they lie, and whether PyTorch counted a write to
// them.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "tensor.h"

namespace fastlrp::edge {

// Looks whether a tensor is still what it was: the same storage, unchanged by PyTorch's count of versions.
class Seen {
 public:
  // Of a tensor without such a count (made in inference mode) nothing is known.
  static std::optional<Seen> of(const Tensor& tensor);

  uint64_t key() const { return storage_; }
  bool expired() const;
  // `now` is of the same key.
  bool is(const Seen& now) const;

 private:
  std::shared_ptr<void> reference_;  // a weak one; it keeps the storage's address from being used again
  uint64_t storage_ = 0;
  const void* data_ = nullptr;
  int64_t count_ = 0, version_ = 0;
};

// Where and how some tensors lie, and how often PyTorch counted a write to some. Needs the GIL.
class Marks {
 public:
  // Throws std::invalid_argument for a tensor without memory among `placed`.
  Marks(std::vector<Tensor> placed, std::vector<Tensor> counted);

  // Whether all is as it was when this was made.
  bool hold() const;

 private:
  std::vector<Tensor> placed_, counted_;
  std::vector<int64_t> versions_;
};

// A tensor's memory alone, which takes a part of the time that the rest does.
struct Memory {
  // Of a tensor in Python; nothing for one without memory. Needs the GIL.
  static std::optional<Memory> of(void* tensor);

  const void* data;
  int64_t numel;
  ScalarType dtype;
  bool on_cpu, contiguous;
};

}  // namespace fastlrp::edge
