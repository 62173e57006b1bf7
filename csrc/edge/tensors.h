// What every edge function needs: checks with messages that say what to do, and memory orders. Checks are written once;
// which tensors a device's kernels take is in its Kernels.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "tensor.h"

namespace fastlrp::edge {

// Numbers from here on do not fit the kernels' 32 bits.
constexpr int64_t kBelow = int64_t{1} << 31;

// Patterns and rows that need not be looked at again: on a GPU a look waits for the device.
class Known {
 public:
  virtual ~Known() = default;
  // What all numbers of the second tensor are known to be below, the largest number if nothing is known.
  virtual int64_t limit(const Tensor& first, const Tensor& second) = 0;
  virtual void add(const Tensor& first, const Tensor& second, int64_t limit) = 0;
  virtual void looked() = 0;  // one was read on the host
};

// The kernels of one device.
struct Kernels {
  const char* device;  // as messages name it
  const char* instead;
  bool (*takes)(const Tensor& tensor);  // whether it is on the device
  bool half;                            // whether float16 and bfloat16 are taken too
  bool narrow;                          // whether the elements of a sample are numbered with 32 bits
  Known* known;                         // null: all is looked at each time
};

extern const Kernels kCpu;
extern const Kernels kCpuNarrow;  // which take 16 bits too

// The checks of one operation.
struct Check {
  const Kernels& kernels;
  const char* op;

  // Dense, on the device, and as large in memory as it says.
  void tensor(const char* name, const Tensor& tensor) const;
  void values(const char* name, const Tensor& tensor) const;  // of a floating-point dtype that kernels take
  void dtype(const char* name, const Tensor& tensor, ScalarType dtype) const;
  void sizes(const char* name, const Tensor& tensor, Ints expected) const;
  // A tensor on the device of `first`; of its dtype.
  void beside(const char* name, const Tensor& tensor, const Tensor& first) const;
  void like(const char* name, const Tensor& tensor, const Tensor& first) const;
  void not_negative(const char* name, int64_t number) const;
  // One entry for each spatial axis of `of`, from `least` on and below 2^31.
  void axes(const char* name, Ints values, size_t axes, const char* of, int64_t least) const;
  // Kernels may number the elements of one sample's map with 32 bits.
  void elements(const char* name, int64_t channels, Ints size) const;
};

// The product of numbers that are not negative, or the largest one if it is not below that.
int64_t product(Ints sizes);

// (before…, *size)
Sizes with(Sizes before, Ints size);

// (…, C, *S) with C innermost and everything after it dense: true for channels-last memory, false for contiguous.
bool channels_last_dense(const Tensor& tensor, int64_t channel_axis);
bool contiguous_from(const Tensor& tensor, int64_t first_axis);

// (B, C, *S) -> its memory with C innermost.
Tensor to_channels_last(const Tensor& tensor);

}  // namespace fastlrp::edge
