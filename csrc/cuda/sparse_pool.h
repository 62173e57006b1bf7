#pragma once

#include "../common/axis.h"
#include "device.h"
#include "sparse.h"

// The pattern of a pool's input, each entry with the rows of the outputs that it takes from, ascending. Both kinds
// count first; scanned, the counts are where each list begins; then the lists are written.

namespace fastlrp::cuda {

// Places of a sample on either side, z, y, x, and which of them a pool's windows join.
struct PoolWindow {
  Axis axes[3];
  Divisor size_y, size_x;  // of the input
  int64_t inputs, outputs;

  explicit PoolWindow(const Window& w);
};

struct Lists {
  int64_t* offsets;   // (positions + 1); null: not wanted
  int32_t* channels;  // (entries); null: not wanted
  int64_t* starts;    // (entries + 1) into rows; null: not wanted
  int64_t* rows;
};

// A max-pool: the outputs that an input won. An item is a position and 32 channels.
struct Winners {
  Map<int64_t> index;  // (B, channels, outputs)
  Pattern pooled;
  PoolWindow window;
  int64_t batch, channels;
  Divisor width;     // items of a position; a sample has fewer than 2^31
  int64_t* entries;  // (items + 1)
  int64_t* rows;     // (items + 1)

  int64_t items() const { return batch * window.inputs * ((channels + kWarp - 1) / kWarp); }
};
void count_winners(const Winners& p, Stream stream);
void list_winners(const Winners& p, const Lists& lists, Stream stream);

// An average pool: the outputs in whose windows a wanted input is. Inputs without any are left out.
struct Windows {
  Pattern wanted, pooled;
  PoolWindow window;
  int64_t batch;
  int64_t count;  // entries of wanted
  int64_t* kept;  // (count + 1): 1 or 0
  int64_t* rows;  // (count + 1); null where windows don't overlap: the same
};
void count_windows(const Windows& p, Stream stream);
void list_windows(const Windows& p, const Lists& lists, Stream stream);

}  // namespace fastlrp::cuda
