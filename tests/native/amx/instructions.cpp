// Each instruction of AMX under the emulator: results against plain loops, and what the processor refuses. Without an
// argument the results; with the name of a case that use, which has to end the process.

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <barrier>
#include <cmath>
#include <cstring>
#include <map>
#include <string>
#include <thread>

#include "../check.h"
#include "emulator.h"

#define TARGET __attribute__((target("amx-tile,amx-bf16")))

namespace {

struct alignas(64) Configuration {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  Configuration(int m, int pairs, int n) {  // tile 0: sums, 1: (m, pairs), 2: (pairs, n), and 3 to 5 the same
    for (const int t : {0, 3}) {
      rows[t] = m, row_bytes[t] = 4 * n;
      rows[t + 1] = m, row_bytes[t + 1] = 4 * pairs;
      rows[t + 2] = pairs, row_bytes[t + 2] = 4 * n;
    }
  }
};

void load(const void* configuration) { __asm__ volatile("ldtilecfg (%0)" : : "r"(configuration) : "memory"); }

float widened(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

float flushed(float value) { return std::fabs(value) < 0x1p-126f ? std::copysign(0.0f, value) : value; }

uint16_t narrow(int64_t exponent) {
  return static_cast<uint16_t>(native::integer(0, 1) << 15 | (127 + exponent) << 7 | native::integer(0, 127));
}

// Exponents near the smallest, so that products and sums fall below it, or near zero.
std::vector<uint16_t> operand(int count, bool tiny) {
  std::vector<uint16_t> values(count);
  for (uint16_t& value : values) {
    value = native::integer(0, 9) == 0 ? static_cast<uint16_t>(native::integer(0, 127))
                                       : narrow(tiny ? native::integer(-76, -60) : native::integer(-3, 3));
  }
  return values;
}

TARGET void a_product(int m, int pairs, int n, bool tiny) {
  const Configuration configuration(m, pairs, n);
  const int a_row = 2 * pairs + 2, b_row = 2 * n, c_row = n + 3;
  const std::vector<uint16_t> a = operand(m * a_row, tiny), b = operand(pairs * b_row, tiny);
  std::vector<float> c = native::mixed<float>(m * c_row), expected = c;
  for (float& value : expected) {
    value = tiny ? 0.0f : value;
  }
  c = expected;
  for (int i = 0; i < m; ++i) {
    for (int j = 0; j < n; ++j) {
      float sums[2] = {};
      for (int k = 0; k < 2 * pairs; ++k) {
        float& sum = sums[k % 2];
        const float one = flushed(widened(a[i * a_row + k])), two = flushed(widened(b[k / 2 * b_row + 2 * j + k % 2]));
        sum = flushed(std::fma(one, two, sum));
      }
      expected[i * c_row + j] = flushed(expected[i * c_row + j] + flushed(sums[0] + sums[1]));
    }
  }
  load(&configuration);
  _tile_loadd(0, c.data(), c_row * 4);
  _tile_loadd(1, a.data(), a_row * 2);
  _tile_stream_loadd(2, b.data(), b_row * 2);
  _tile_dpbf16ps(0, 1, 2);
  _tile_stored(0, c.data(), c_row * 4);
  _tile_release();
  CHECK(std::memcmp(c.data(), expected.data(), c.size() * sizeof(float)) == 0);
}

// Every way to write an address: with displacements of one and four bytes, registers above the eighth, and scales.
TARGET void addresses() {
  const Configuration configuration(3, 16, 16);
  std::vector<uint8_t> memory(4096);
  for (uint8_t& value : memory) {
    value = static_cast<uint8_t>(native::random());
  }
  load(&configuration);
  const uint8_t* at = memory.data();
  std::vector<uint8_t> found(3 * 64);
  const auto check = [&](const uint8_t* from, int64_t stride) {
    __asm__ volatile("tilestored %%tmm0, (%0,%1,1)" : : "r"(found.data()), "r"(int64_t{64}) : "memory");
    for (int r = 0; r < 3; ++r) {
      CHECK(std::memcmp(found.data() + r * 64, from + r * stride, 64) == 0);
    }
  };
#define LOAD(base_register, index_register, from, by, text)                              \
  do {                                                                                   \
    register const uint8_t* base __asm__(base_register) = from;                          \
    register int64_t index __asm__(index_register) = by;                                 \
    __asm__ volatile("tileloadd " text ", %%tmm0" : : "r"(base), "r"(index) : "memory"); \
  } while (false)
  const uint8_t* middle = at + 2048;
  LOAD("rax", "rcx", at, 100, "(%0,%1,1)");
  check(at, 100);
  LOAD("rax", "rcx", at, 100, "0x40(%0,%1,2)");
  check(at + 0x40, 200);
  LOAD("rdi", "rdx", at, 100, "0x123(%0,%1,4)");
  check(at + 0x123, 400);
  LOAD("r13", "r12", middle, -70, "(%0,%1,1)");
  check(middle, -70);
  LOAD("r12", "r13", middle, -70, "-0x40(%0,%1,8)");
  check(middle - 0x40, -560);
  LOAD("rbx", "r15", middle, 33, "-0x400(%0,%1,1)");
  check(middle - 0x400, 33);
  LOAD("r9", "rsi", middle, 5, "(%0)");  // without an index the stride is zero
  check(middle, 0);
#undef LOAD
  std::vector<uint8_t> kept(64, 0x55);
  __asm__ volatile("sttilecfg (%0)" : : "r"(kept.data()) : "memory");
  CHECK(std::memcmp(kept.data(), &configuration, kept.size()) == 0);
  _tile_release();
  __asm__ volatile("sttilecfg (%0)" : : "r"(kept.data()) : "memory");
  CHECK(kept == std::vector<uint8_t>(64));
  static const Configuration fixed(16, 16, 16);
  __asm__ volatile("ldtilecfg %0" : : "m"(fixed));
  CHECK(amx_emulator_configured() == 1);
  load(kept.data());  // palette 0: none
  CHECK(amx_emulator_configured() == 0);
}

// A row behind a tile's last one, and bytes behind its last column, are zero and stay in no other tile.
TARGET void shorter_tiles() {
  const Configuration whole(16, 16, 16), part(2, 3, 5);
  const std::vector<float> source = native::mixed<float>(256);
  std::vector<float> found(256, 7.0f);
  load(&part);
  _tile_loadd(0, source.data(), 64);
  _tile_stored(0, found.data(), 64);
  for (int i = 0; i < 256; ++i) {
    CHECK(found[i] == (i / 16 < 2 && i % 16 < 5 ? source[i] : 7.0f));
  }
  load(&whole);  // which clears all tiles
  _tile_stored(0, found.data(), 64);
  CHECK(found == std::vector<float>(256));
  _tile_loadd(0, source.data(), 64);
  _tile_zero(0);
  _tile_stored(0, found.data(), 64);
  CHECK(found == std::vector<float>(256));
  _tile_release();
}

TARGET void threads() {
  std::barrier both(2);
  const auto body = [&](int rows, float value) {
    const Configuration configuration(rows, 16, 16);
    const std::vector<float> source(256, value);
    std::vector<float> found(256);
    both.arrive_and_wait();
    load(&configuration);
    both.arrive_and_wait();
    CHECK(amx_emulator_configured() == 2);
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm0" : : "r"(source.data()), "r"(int64_t{64}) : "memory");
    both.arrive_and_wait();
    __asm__ volatile("tilestored %%tmm0, (%0,%1,1)" : : "r"(found.data()), "r"(int64_t{64}) : "memory");
    both.arrive_and_wait();
    __asm__ volatile("tilerelease");
    for (int i = 0; i < 256; ++i) {
      CHECK(found[i] == (i / 16 < rows ? value : 0.0f));
    }
  };
  std::thread other(body, 5, 2.0f);
  body(16, 3.0f);
  other.join();
  CHECK(amx_emulator_configured() == 0);
}

using Use = void (*)();

template <class Change>
void load_changed(Change&& change) {
  Configuration configuration(16, 16, 16);
  change(configuration);
  load(&configuration);
}

TARGET void multiply_with(int tile, int rows, int bytes) {
  load_changed([&](Configuration& c) { c.rows[tile] = rows, c.row_bytes[tile] = bytes; });
  _tile_dpbf16ps(0, 1, 2);
}

alignas(64) uint8_t memory[1024];

const std::map<std::string, Use> kRefused = {
    {"palette", [] { load_changed([](Configuration& c) { c.palette = 2; }); }},
    {"reserved", [] { load_changed([](Configuration& c) { c.reserved[3] = 1; }); }},
    {"ninth tile's columns", [] { load_changed([](Configuration& c) { c.row_bytes[8] = 64; }); }},
    {"ninth tile's rows", [] { load_changed([](Configuration& c) { c.rows[8] = 16; }); }},
    {"wide", [] { load_changed([](Configuration& c) { c.row_bytes[2] = 68; }); }},
    {"high", [] { load_changed([](Configuration& c) { c.rows[1] = 17; }); }},
    {"empty rows", [] { load_changed([](Configuration& c) { c.row_bytes[7] = 4; }); }},
    {"no configuration", [] { __asm__ volatile("tilezero %tmm3"); }},
    {"released",
     [] {
       load_changed([](Configuration&) {});
       __asm__ volatile("tilerelease\n\ttilezero %tmm3");
     }},
    {"no tile",
     [] {
       load_changed([](Configuration&) {});
       __asm__ volatile("tilezero %tmm7");
     }},
    {"odd row",
     [] {
       load_changed([](Configuration& c) { c.row_bytes[0] = 62; });
       __asm__ volatile("tileloadd (%0,%1,1), %%tmm0" : : "r"(memory), "r"(int64_t{64}));
     }},
    {"first row behind the last",
     [] {
       load_changed([](Configuration& c) { c.rows[0] = c.start_row = 5; });
       __asm__ volatile("tilestored %%tmm0, (%0,%1,1)" : : "r"(memory), "r"(int64_t{64}));
     }},
    {"first row of a product",
     [] {
       load_changed([](Configuration& c) { c.start_row = 1; });
       __asm__ volatile("tdpbf16ps %tmm2, %tmm1, %tmm0");
     }},
    {"twice",
     [] {
       load_changed([](Configuration&) {});
       __asm__ volatile(".byte 0xc4, 0xe2, 0x72, 0x5c, 0xc1");
     }},
    {"rows differ", [] { multiply_with(1, 8, 64); }},
    {"columns differ", [] { multiply_with(2, 16, 32); }},
    {"pairs differ", [] { multiply_with(2, 8, 64); }},
    {"odd pairs", [] { multiply_with(1, 16, 62); }},
    {"no second operand", [] { multiply_with(2, 0, 0); }},
    {"wide prefix", [] { __asm__ volatile(".byte 0xc4, 0xe2, 0xf8, 0x49, 0xc0"); }},
    {"another thread's configuration",
     [] {
       load_changed([](Configuration&) {});
       std::thread([] { __asm__ volatile("tilezero %tmm0"); }).join();
     }},
    {"none of these", [] { __asm__ volatile(".byte 0xc4, 0xe2, 0x70, 0x5e, 0xc2"); }},  // TDPBUUD
};

}  // namespace

int main(int count, char** arguments) {
  const std::string name = count > 1 ? arguments[1] : "";
  if (name == "not permitted") {
    load_changed([](Configuration&) {});
    return 0;
  }
  CHECK(syscall(SYS_arch_prctl, 0x1023, 18) == 0);
  CHECK(syscall(SYS_getpid) == getpid());
  CHECK(syscall(SYS_close, -1) == -1 && errno == EBADF);
  if (!name.empty()) {
    kRefused.at(name)();
    return 0;
  }
  for (const bool tiny : {false, true}) {
    for (const int m : {1, 5, 16}) {
      for (const int pairs : {1, 7, 16}) {
        for (const int n : {1, 4, 16}) {
          a_product(m, pairs, n, tiny);
        }
      }
    }
  }
  addresses();
  shorter_tiles();
  threads();
  uint64_t counts[amx::kInstructions];
  amx_emulator_counts(counts);
  for (const uint64_t each : counts) {
    CHECK(each > 0);
  }
  CHECK(amx_emulator_threads() == 2);
  std::puts("passed");
  return 0;
}
