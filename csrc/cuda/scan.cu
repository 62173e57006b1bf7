// Exclusive prefix sums. Each block takes a tile of counts; the sums of tiles are themselves scanned, and then every
// tile goes on from where the tiles before it ended. Reads and writes are coalesced: a block walks its tile in steps of
// one count per thread.

#include "block_scan.h"
#include "scan.h"

namespace fastlrp::cuda {
namespace {

constexpr int kThreads = 256, kSteps = 8;
constexpr int64_t kTile = kThreads * kSteps;

int64_t tiles_of(int64_t count) { return count <= kTile ? 1 : (count + kTile - 1) / kTile; }

__global__ void __launch_bounds__(kThreads)
    tile_sums(const int64_t* counts, int64_t count, int64_t* sums /* (tiles) */) {
  int64_t* shared = dynamic_shared<int64_t>();
  const int64_t first = blockIdx.x * kTile + threadIdx.x;
  int64_t sum = 0, total;
  for (int step = 0; step < kSteps; ++step) {
    const int64_t i = first + step * kThreads;
    sum += i < count ? counts[i] : 0;
  }
  block_scan<kThreads / kWarp>(sum, shared, total);
  if (threadIdx.x == 0) {
    sums[blockIdx.x] = total;
  }
}

__global__ void __launch_bounds__(kThreads)
    scan_tiles(int64_t* counts, int64_t count, const int64_t* begin /* (tiles); null: one tile, from 0 */) {
  int64_t* shared = dynamic_shared<int64_t>();
  const int64_t first = blockIdx.x * kTile + threadIdx.x;
  int64_t before = begin == nullptr ? 0 : begin[blockIdx.x];
  for (int step = 0; step < kSteps; ++step) {
    const int64_t i = first + step * kThreads;
    const int64_t here = i < count ? counts[i] : 0;
    int64_t total;
    const int64_t sum = before + block_scan<kThreads / kWarp>(here, shared, total);
    before += total;
    if (i < count) {
      counts[i] = sum;
    }
  }
  if (blockIdx.x == gridDim.x - 1 && threadIdx.x == 0) {
    counts[count] = before;
  }
}

}  // namespace

int64_t scan_scratch(int64_t count) {
  const int64_t tiles = tiles_of(count);
  return tiles == 1 ? 0 : tiles + 1 + scan_scratch(tiles);
}

void exclusive_scan(int64_t* counts, int64_t count, int64_t* scratch, Stream stream) {
  const int64_t tiles = tiles_of(count);
  const dim3 grid(static_cast<unsigned>(tiles));
  constexpr size_t shared = kThreads / kWarp * sizeof(int64_t);
  if (tiles > 1) {
    launch(tile_sums, grid, kThreads, shared, stream, counts, count, scratch);
    exclusive_scan(scratch, tiles, scratch + tiles + 1, stream);
  }
  launch(scan_tiles, grid, kThreads, shared, stream, counts, count, tiles > 1 ? scratch : nullptr);
}

}  // namespace fastlrp::cuda
