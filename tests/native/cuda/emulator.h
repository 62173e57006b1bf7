// Runs CUDA kernels on the CPU, to prove what they compute where there is no GPU. Threads of a block are fibers that
// switch at barriers and warp-wide operations only; blocks run one after another. More hostile than a GPU where that
// finds mistakes: shared memory begins as NaN, a cp.async arrives at the last moment that the PTX ISA allows, threads
// between two barriers run in an order that the test chooses, and a barrier that not all threads reach is an error.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <vector_types.h>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __grid_constant__
#define __grid_constant__

namespace emulator {

// In what order the threads of a block run between barriers: "forward", "backward", or "random" with a seed.
void set_order(const std::string& order, uint64_t seed);

void run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel);
int64_t launches();  // so far

// Remembers which kernel is launched; kernels() has where each lies in this library, which its symbols name.
void note(const void* kernel);
std::vector<int64_t> kernels();

// A GPU stops the whole process where this is not so.
void check_aligned(const void* address, size_t bytes);

struct Index {
  unsigned x, y, z;
};
extern Index thread_index, block_index, block_size, grid_size;

void* dynamic_shared();
void* new_shared(size_t bytes);  // poisoned, as all shared memory, at the start of each block
void sync_threads();

// Every lane named in the mask gives `bytes` (at most 64); returns the values of all 32 lanes, 64 bytes apart. `what`:
// lanes that meet must be doing the same.
const unsigned char* exchange(unsigned mask, int what, const void* value, size_t bytes);
unsigned lane();

enum { kShuffle = 1, kVote, kSync, kMmaTf32, kMmaHalf, kMmaBfloat, kMatrices };

template <class T>
T shuffle(unsigned mask, T value, unsigned from, unsigned width) {
  static_assert(sizeof(T) <= 64);
  const unsigned char* all = exchange(mask, kShuffle, &value, sizeof(T));
  const unsigned first = lane() / width * width;
  T result;
  std::memcpy(&result, all + 64 * (first + from % width), sizeof(T));
  return result;
}

unsigned ballot(unsigned mask, bool predicate);

uint32_t to_tf32(float x);
void mma_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
void mma_16bit(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bool half);
template <class T>
void mma_16bit(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  mma_16bit(c, a, b, std::is_same_v<T, __half>);
}
void load_matrices(uint32_t (&r)[4], const void* row, bool transposed);
template <bool transposed>
void load_matrices(uint32_t (&r)[4], const void* row) {
  load_matrices(r, row, transposed);
}

void copy_async(void* shared, const void* global, int size, int bytes);
void commit_copies();
void wait_copies(int pending);

}  // namespace emulator

#define threadIdx ::emulator::thread_index
#define blockIdx ::emulator::block_index
#define blockDim ::emulator::block_size
#define gridDim ::emulator::grid_size

inline void __syncthreads() { emulator::sync_threads(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { emulator::exchange(mask, emulator::kSync, nullptr, 0); }
inline unsigned __ballot_sync(unsigned mask, int predicate) { return emulator::ballot(mask, predicate != 0); }
inline int __any_sync(unsigned mask, int predicate) { return emulator::ballot(mask, predicate != 0) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return emulator::ballot(mask, predicate != 0) == mask; }
template <class T>
T __shfl_sync(unsigned mask, T value, int from, int width = 32) {
  return emulator::shuffle(mask, value, static_cast<unsigned>(from), static_cast<unsigned>(width));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int with, int width = 32) {
  const unsigned in = emulator::lane() % static_cast<unsigned>(width);
  return emulator::shuffle(mask, value, in ^ static_cast<unsigned>(with), static_cast<unsigned>(width));
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32) {
  const unsigned in = emulator::lane() % static_cast<unsigned>(width);
  return emulator::shuffle(mask, value, in < by ? in : in - by, static_cast<unsigned>(width));
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32) {
  const unsigned in = emulator::lane() % static_cast<unsigned>(width);
  return emulator::shuffle(mask, value, in + by < static_cast<unsigned>(width) ? in + by : in,
                           static_cast<unsigned>(width));
}
inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return x == 0 ? 0 : std::countr_zero(static_cast<unsigned>(x)) + 1; }
template <class T>
T __ldg(const T* from) {
  return *from;
}
template <class T, class U>
T atomicAdd(T* to, U value) {
  const T old = *to;
  *to = old + static_cast<T>(value);
  return old;
}
template <class T, class U>
T atomicMax(T* to, U value) {
  const T old = *to;
  *to = old < static_cast<T>(value) ? static_cast<T>(value) : old;
  return old;
}
inline void __threadfence() {}
inline void __threadfence_block() {}
