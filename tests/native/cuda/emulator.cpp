#include "emulator.h"

#include <dlfcn.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <random>
#include <set>
#include <stdexcept>
#include <vector>

#include "fiber.h"

namespace emulator {

Index thread_index, block_index, block_size, grid_size;

namespace {

constexpr size_t kSlot = 64;
constexpr size_t kRing = 64;             // results of a warp's last exchanges that lanes may still read
constexpr unsigned char kPoison = 0xff;  // NaN in every floating-point format

enum class State { ready, at_barrier, in_exchange, done };

struct Copy {
  void* to;
  const void* from;
  int size, bytes;
};

struct Thread {
  Fiber fiber;
  State state = State::ready;
  Index index{};
  unsigned number = 0;
  unsigned mask = 0;
  int what = 0;
  unsigned char given[kSlot] = {};
  const unsigned char* received = nullptr;
  std::vector<std::vector<Copy>> groups;  // committed cp.async groups, oldest first
  std::vector<Copy> open;                 // not yet committed
};

struct Warp {
  std::vector<unsigned char> ring = std::vector<unsigned char>(kRing * 32 * kSlot);
  size_t next = 0;
};

struct Block {
  std::vector<std::unique_ptr<Thread>> threads;
  std::vector<Warp> warps;
  std::vector<unsigned char> shared;
  const std::function<void()>* kernel = nullptr;
  Thread* current = nullptr;
  std::string error;
};

Block block;
std::vector<std::unique_ptr<std::vector<unsigned char>>> arrays;
std::string order_name = "forward";
std::mt19937_64 random_order;
int64_t launched = 0;
std::set<const void*> noted;

[[noreturn]] void fail(const std::string& message) {
  // Only fibers come here; the scheduler throws.
  block.error = message;
  block.current->state = State::done;
  block.current->fiber.leave();
  std::abort();
}

void enter(void* argument) {
  auto* thread = static_cast<Thread*>(argument);
  (*block.kernel)();
  thread->state = State::done;
  thread->fiber.leave();
}

void pause(State state) {
  Thread& thread = *block.current;
  thread.state = state;
  thread.fiber.leave();
}

std::vector<unsigned> order_of(unsigned count) {
  std::vector<unsigned> order(count);
  std::iota(order.begin(), order.end(), 0u);
  if (order_name == "backward") {
    std::reverse(order.begin(), order.end());
  } else if (order_name == "random") {
    std::shuffle(order.begin(), order.end(), random_order);
  }
  return order;
}

void release_exchange(Thread& arrived) {
  const unsigned first = arrived.number / 32 * 32;
  const auto count = static_cast<unsigned>(block.threads.size());
  for (unsigned i = 0; i < 32; ++i) {
    if (arrived.mask >> i & 1) {
      if (first + i >= count) {
        fail("a warp operation names lane " + std::to_string(i) + ", which the block does not have");
      }
      const Thread& other = *block.threads[first + i];
      if (&other != &arrived && (other.state != State::in_exchange || other.mask != arrived.mask)) {
        return;
      }
      if (other.what != arrived.what) {
        fail("lanes of one warp meet in different operations");
      }
    }
  }
  Warp& warp = block.warps[first / 32];
  unsigned char* slot = warp.ring.data() + warp.next * 32 * kSlot;
  warp.next = (warp.next + 1) % kRing;
  for (unsigned i = 0; i < 32; ++i) {
    if (arrived.mask >> i & 1) {
      Thread& other = *block.threads[first + i];
      std::memcpy(slot + i * kSlot, other.given, kSlot);
      other.received = slot;
      other.state = State::ready;
    }
  }
}

void run_block() {
  const auto count = static_cast<unsigned>(block.threads.size());
  for (unsigned number = 0; number < count; ++number) {
    Thread& thread = *block.threads[number];
    thread.number = number;
    thread.index = {number % block_size.x, number / block_size.x % block_size.y,
                    number / (block_size.x * block_size.y)};
    thread.state = State::ready;
    thread.groups.clear();
    thread.open.clear();
    thread.fiber.prepare(enter, &thread);
  }
  for (;;) {
    bool ran = false;
    for (unsigned number : order_of(count)) {
      Thread& thread = *block.threads[number];
      if (thread.state == State::ready) {
        ran = true;
        block.current = &thread;
        thread_index = thread.index;
        thread.fiber.enter();
        if (!block.error.empty()) {
          throw std::runtime_error("emulated kernel: " + block.error);
        }
      }
    }
    if (ran) {
      continue;
    }
    bool all_done = true, stuck = false;
    for (auto& thread : block.threads) {
      all_done &= thread->state == State::done;
      stuck |= thread->state == State::in_exchange;
    }
    if (all_done) {
      return;
    }
    if (stuck) {
      throw std::runtime_error("emulated kernel: lanes wait in a warp operation that others never reach");
    }
    for (auto& thread : block.threads) {
      if (thread->state == State::done) {
        throw std::runtime_error("emulated kernel: some threads of a block ended before a barrier that others wait at");
      }
      thread->state = State::ready;
    }
  }
}

float half_at(uint32_t pair, int i, bool half) {
  const auto bits = static_cast<uint16_t>(i == 0 ? pair & 0xffff : pair >> 16);
  if (half) {
    __half_raw raw;
    raw.x = bits;
    return __half2float(__half(raw));
  }
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

struct Fragments {
  float c[4];
  uint32_t a[4], b[2];
};

Fragments fragments_of(const unsigned char* all, unsigned lane) {
  Fragments f;
  std::memcpy(&f, all + kSlot * lane, sizeof f);
  return f;
}

}  // namespace

void set_order(const std::string& order, uint64_t seed) {
  if (order != "forward" && order != "backward" && order != "random") {
    throw std::invalid_argument("order must be forward, backward or random, got " + order);
  }
  order_name = order;
  random_order.seed(seed);
}

int64_t launches() { return launched; }

void note(const void* kernel) { noted.insert(kernel); }

std::vector<int64_t> kernels() {
  std::vector<int64_t> places;
  for (const void* kernel : noted) {
    Dl_info library{};
    if (dladdr(kernel, &library) != 0) {
      places.push_back(static_cast<const char*>(kernel) - static_cast<const char*>(library.dli_fbase));
    }
  }
  return places;
}

void check_aligned(const void* address, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0) {
    fail("a vector of " + std::to_string(bytes) + " bytes is read or written at an address that is no multiple of it");
  }
}

void run(dim3 grid, dim3 size, size_t shared_bytes, const std::function<void()>& kernel) {
  const size_t threads = size_t{size.x} * size.y * size.z;
  if (threads == 0 || threads > 1024 || shared_bytes > 227 * 1024 || grid.y > 65535 || grid.z > 65535 ||
      grid.x > 0x7fffffffu) {
    throw std::runtime_error("emulated kernel: a GPU would refuse this launch (block of " + std::to_string(threads) +
                             " threads, " + std::to_string(shared_bytes) + " bytes of shared memory, grid " +
                             std::to_string(grid.x) + " x " + std::to_string(grid.y) + " x " + std::to_string(grid.z) +
                             ")");
  }
  ++launched;
  while (block.threads.size() < threads) {
    block.threads.push_back(std::make_unique<Thread>());
  }
  block.threads.resize(threads);
  block.warps.resize((threads + 31) / 32);
  block.kernel = &kernel;
  block.error.clear();
  grid_size = {grid.x, grid.y, grid.z};
  block_size = {size.x, size.y, size.z};
  std::vector<unsigned> xs = order_of(grid.x);
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x : xs) {
        block_index = {x, y, z};
        // A heap block of exactly this size for each block: the address sanitizer then sees its ends.
        block.shared.assign(shared_bytes, kPoison);
        block.shared.shrink_to_fit();
        for (auto& array : arrays) {
          std::fill(array->begin(), array->end(), kPoison);
        }
        run_block();
      }
    }
  }
}

void* dynamic_shared() { return block.shared.data(); }

void* new_shared(size_t bytes) {
  arrays.push_back(std::make_unique<std::vector<unsigned char>>(bytes, kPoison));
  return arrays.back()->data();
}

void sync_threads() { pause(State::at_barrier); }

unsigned lane() { return block.current->number % 32; }

const unsigned char* exchange(unsigned mask, int what, const void* value, size_t bytes) {
  Thread& thread = *block.current;
  if ((mask >> (thread.number % 32) & 1) == 0) {
    fail("a lane calls a warp operation whose mask does not name it");
  }
  std::memset(thread.given, kPoison, kSlot);
  if (bytes != 0) {
    std::memcpy(thread.given, value, bytes);
  }
  thread.mask = mask;
  thread.what = what;
  thread.state = State::in_exchange;
  release_exchange(thread);
  // Also who came last goes back to the queue, so that lanes go on in the chosen order.
  thread.fiber.leave();
  return thread.received;
}

unsigned ballot(unsigned mask, bool predicate) {
  const unsigned char* all = exchange(mask, kVote, &predicate, sizeof predicate);
  unsigned votes = 0;
  for (unsigned i = 0; i < 32; ++i) {
    votes |= (mask >> i & 1 && all[kSlot * i] != 0 ? 1u : 0u) << i;
  }
  return votes;
}

uint32_t to_tf32(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  return std::isfinite(x) ? (bits + 0x1000u) & 0xffffe000u : bits;
}

void mma_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  Fragments mine{{c[0], c[1], c[2], c[3]}, {a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  const unsigned char* all = exchange(0xffffffffu, kMmaTf32, &mine, sizeof mine);
  auto number = [](uint32_t bits) { return std::bit_cast<float>(bits & 0xffffe000u); };
  const unsigned group = lane() / 4, thread = lane() % 4;
  for (unsigned i = 0; i < 4; ++i) {
    double sum = c[i];
    for (unsigned k = 0; k < 8; ++k) {
      const unsigned n = 2 * thread + i % 2;
      sum += static_cast<double>(number(fragments_of(all, 4 * group + k % 4).a[i / 2 + 2 * (k / 4)])) *
             number(fragments_of(all, 4 * n + k % 4).b[k / 4]);
    }
    c[i] = static_cast<float>(sum);
  }
}

void mma_16bit(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bool half) {
  Fragments mine{{c[0], c[1], c[2], c[3]}, {a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  const unsigned char* all = exchange(0xffffffffu, half ? kMmaHalf : kMmaBfloat, &mine, sizeof mine);
  const unsigned group = lane() / 4, thread = lane() % 4;
  for (unsigned i = 0; i < 4; ++i) {
    double sum = c[i];
    for (unsigned k = 0; k < 16; ++k) {
      const unsigned n = 2 * thread + i % 2, with = k % 8 / 2;
      const float left = half_at(fragments_of(all, 4 * group + with).a[i / 2 + 2 * (k / 8)], k % 2, half);
      const float right = half_at(fragments_of(all, 4 * n + with).b[k / 8], k % 2, half);
      sum += static_cast<double>(left) * right;
    }
    c[i] = static_cast<float>(sum);
  }
}

void load_matrices(uint32_t (&r)[4], const void* row, bool transposed) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) {
    fail("ldmatrix: a row is not aligned to 16 bytes");
  }
  unsigned char values[16];
  std::memcpy(values, row, sizeof values);
  const unsigned char* all = exchange(0xffffffffu, kMatrices, values, sizeof values);
  const unsigned group = lane() / 4, thread = lane() % 4;
  for (unsigned i = 0; i < 4; ++i) {
    uint16_t pair[2];
    for (unsigned j = 0; j < 2; ++j) {
      const unsigned at_row = transposed ? 2 * thread + j : group, column = transposed ? group : 2 * thread + j;
      std::memcpy(&pair[j], all + kSlot * (8 * i + at_row) + 2 * column, 2);
    }
    r[i] = pair[0] | static_cast<uint32_t>(pair[1]) << 16;
  }
}

void copy_async(void* shared, const void* global, int size, int bytes) {
  if (reinterpret_cast<uintptr_t>(shared) % size != 0 ||
      (bytes != 0 && reinterpret_cast<uintptr_t>(global) % size != 0)) {
    fail("cp.async: an address is not aligned to " + std::to_string(size) + " bytes");
  }
  if (bytes < 0 || bytes > size) {
    fail("cp.async: " + std::to_string(bytes) + " of " + std::to_string(size) + " bytes");
  }
  // Until it arrives the destination holds nothing that may be used.
  std::memset(shared, kPoison, size);
  block.current->open.push_back({shared, global, size, bytes});
}

void commit_copies() {
  Thread& thread = *block.current;
  thread.groups.push_back(std::move(thread.open));
  thread.open.clear();
}

void wait_copies(int pending) {
  Thread& thread = *block.current;
  while (static_cast<int>(thread.groups.size()) > pending) {
    for (const Copy& copy : thread.groups.front()) {
      std::memset(copy.to, 0, copy.size);
      if (copy.bytes != 0) {
        std::memcpy(copy.to, copy.from, copy.bytes);
      }
    }
    thread.groups.erase(thread.groups.begin());
  }
}

}  // namespace emulator
