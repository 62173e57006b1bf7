#pragma once

#include "device.h"
#include "sparse.h"

// Which neurons are alive, and their lists. Masks are read once, into one bit per neuron; sizes on the host are needed
// between list_scan's total and list_words only.

namespace fastlrp::cuda {

constexpr int kMasks = 8;

// Bit c % 32 of words[position][c / 32]: whether any of the masks is not zero there. What an index outside its mask
// names is taken to be zero: to report it the host would have to wait for the device.
template <class T>
struct MaskWords {
  Mask<T> masks[kMasks];
  int count;
  int64_t batch, channels, spatial;
  uint32_t* words;  // (batch * spatial, ceil(channels / 32))
  bool onto;        // words hold other masks already
};
template <class T>
void mask_words(const MaskWords<T>& p, Stream stream);

struct WordLists {
  const uint32_t* words;  // (positions, width)
  int64_t positions, width;
  int64_t* begin;  // (tiles + 1), the last one is the number of entries
  int64_t tiles() const;
};
// The number of bits in each tile of words, to be scanned in place.
void count_words(const WordLists& p, Stream stream);
void list_words(const WordLists& p, int64_t* offsets /* (positions + 1) */, int32_t* channels, Stream stream);

}  // namespace fastlrp::cuda
