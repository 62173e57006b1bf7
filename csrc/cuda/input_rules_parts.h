// What the launchers for a network's input share, on the host.
#pragma once

#include <algorithm>
#include <limits>

#include "input_rules.h"

namespace fastlrp::cuda {

inline int64_t product(const Axis* axes, int32_t Axis::* size) {
  return int64_t{axes[0].*size} * (axes[1].*size) * (axes[2].*size);
}

// Whether V channels can be read at once: of F and of n coefficients with these strides.
template <class T>
bool reads_vectors(const T* relevance, const int64_t (&strides)[6], const T* const* u, int n,
                   const int64_t (&u_strides)[5], int64_t Co, int V) {
  const auto whole = [V](int64_t number) { return number % V == 0; };
  const int64_t *end = strides + 6, *u_end = u_strides + 5;
  return strides[2] == 1 && u_strides[1] == 1 && whole(Co) && is_aligned(relevance, V) &&
         std::all_of(u, u + n, [V](const T* pointer) { return is_aligned(pointer, V); }) &&
         std::all_of(strides, strides + 2, whole) && std::all_of(strides + 3, end, whole) && whole(u_strides[0]) &&
         std::all_of(u_strides + 2, u_end, whole);
}

// How the map is cut into the parts of one block each.
struct Tile {
  int32_t size[3], count[3];  // inputs of a block, and how many such parts each axis has
  int64_t places, tiles;      // products of both
  int threads;
};

// Inputs whose outputs are at most n along an axis.
inline int64_t inputs_within(const Axis& axis, int64_t n) {
  const int64_t inputs = axis.outputs <= n ? axis.inputs : n * axis.stride - int64_t{axis.taps - 1} * axis.dilation;
  return std::min<int64_t>(inputs, axis.inputs);
}

inline int64_t parts(int64_t size, int64_t each) { return (size + each - 1) / each; }

// Parts of the map such that the blocks together hold as few groups of sources as can be: where parts overlap, their
// sources are computed by each.
inline Tile tile_of(const Axis* axes, int64_t most_places, int64_t group, int64_t sources_of_thread) {
  int64_t least[3];  // sources that one input needs
  for (int a = 0; a < 3; ++a) {
    least[a] = std::min<int64_t>(int64_t{axes[a].taps - 1} * axes[a].dilation / axes[a].stride + 1, axes[a].outputs);
  }
  const int64_t groups = parts(least[0] * least[1] * least[2], group), budget = groups * group;
  Tile best{};
  int64_t cost = std::numeric_limits<int64_t>::max();
  for (int64_t z = least[0]; z <= axes[0].outputs && z * least[1] * least[2] <= budget; ++z) {
    for (int64_t y = least[1]; y <= axes[1].outputs && z * y * least[2] <= budget; ++y) {
      const int64_t x = std::min<int64_t>(budget / (z * y), axes[2].outputs);
      int64_t room = most_places;
      const int64_t n[3] = {z, y, x};
      Tile tile{};
      tile.tiles = 1;
      for (int a = 0; a < 3; ++a) {
        const int64_t most = std::max<int64_t>(1, std::min(inputs_within(axes[a], n[a]), room));
        tile.count[a] = static_cast<int32_t>(parts(axes[a].inputs, most));
        tile.size[a] = static_cast<int32_t>(parts(axes[a].inputs, tile.count[a]));
        tile.tiles *= tile.count[a];
        room /= tile.size[a];
      }
      if (tile.tiles < cost) {
        cost = tile.tiles;
        best = tile;
      }
    }
  }
  best.places = 1;
  int64_t sources = 1;
  for (int a = 0; a < 3; ++a) {
    const Axis& axis = axes[a];
    best.places *= best.size[a];
    sources *=
        std::min<int64_t>((best.size[a] - 1 + int64_t{axis.taps - 1} * axis.dilation) / axis.stride + 1, axis.outputs);
  }
  const int64_t warps = parts(std::min(sources, group), sources_of_thread * kWarp);
  best.threads = static_cast<int>(warps * kWarp);
  return best;
}

}  // namespace fastlrp::cuda
