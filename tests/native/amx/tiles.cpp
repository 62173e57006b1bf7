#include "tiles.h"

#include <immintrin.h>
#include <unistd.h>

#include <atomic>
#include <cstring>

namespace amx {
namespace {

constexpr int kRows = 16, kRowBytes = 64;

struct State {
  bool configured, counted;
  uint8_t start_row;
  uint16_t row_bytes[kTiles];
  uint8_t rows[kTiles];
  alignas(64) uint8_t data[kTiles][kRows][kRowBytes];
};

// Where no memory has to be allocated for it when a thread asks first.
thread_local __attribute__((tls_model("initial-exec"))) State state;
std::atomic<uint64_t> executed[kInstructions];
std::atomic<int> configured_now{0}, threads_seen{0};
std::atomic<bool> permitted{false};
int errors = 2;
uint64_t places_from = 0;

[[noreturn]] void end_with(const Line& line) {
  const ssize_t written = write(errors, line.text, line.size);
  _exit(written < 0 ? kViolation + 1 : kViolation);
}

// `number` stands behind the reason where it is not negative.
[[noreturn]] void violation(const Decoded& d, const char* fault, const char* reason, int64_t number = -1) {
  Line line;
  line << "amx: ";
  describe(line, d);
  line << " at ";
  line.hex(reinterpret_cast<uint64_t>(d.at) - places_from);
  line << ": " << fault << ", " << reason;
  if (number >= 0) {
    line << " " << number;
  }
  line << "\n";
  end_with(line);
}

#define REQUIRE(condition, fault, ...)  \
  do {                                  \
    if (!(condition)) {                 \
      violation(d, fault, __VA_ARGS__); \
    }                                   \
  } while (false)

void set_configured(bool now) {
  configured_now += static_cast<int>(now) - static_cast<int>(state.configured);
  if (now && !state.counted) {
    state.counted = true;
    ++threads_seen;
  }
  const bool counted = state.counted;
  std::memset(&state, 0, sizeof state);
  state.counted = counted;
  state.configured = now;
}

void load_configuration(const Decoded& d) {
  uint8_t wanted[64];
  std::memcpy(wanted, d.address, sizeof wanted);
  REQUIRE(wanted[0] <= 1, "#GP", "there is no palette", wanted[0]);
  if (wanted[0] == 0) {
    set_configured(false);
    return;
  }
  for (int i = 2; i < 64; ++i) {
    const bool reserved = i < 16 || (i >= 32 && i < 48) || i >= 56;
    REQUIRE(!reserved || wanted[i] == 0, "#GP", "not zero is the reserved byte", i);
  }
  uint16_t row_bytes[kTiles];
  std::memcpy(row_bytes, wanted + 16, sizeof row_bytes);
  const uint8_t* rows = wanted + 48;
  for (int t = 0; t < kTiles; ++t) {
    REQUIRE(row_bytes[t] <= kRowBytes, "#GP", "a row of more than 64 bytes for tile", t);
    REQUIRE(rows[t] <= kRows, "#GP", "more than 16 rows for tile", t);
    REQUIRE((row_bytes[t] == 0) == (rows[t] == 0), "#GP", "rows without bytes or bytes without rows for tile", t);
  }
  set_configured(true);
  state.start_row = wanted[1];
  std::memcpy(state.row_bytes, row_bytes, sizeof row_bytes);
  std::memcpy(state.rows, rows, sizeof state.rows);
}

void store_configuration(const Decoded& d) {
  uint8_t now[64] = {};
  if (state.configured) {
    now[0] = 1;
    now[1] = state.start_row;
    std::memcpy(now + 16, state.row_bytes, sizeof state.row_bytes);
    std::memcpy(now + 48, state.rows, sizeof state.rows);
  }
  std::memcpy(const_cast<uint8_t*>(d.address), now, sizeof now);
}

void check_tile(const Decoded& d, int t) {
  REQUIRE(state.configured, "#UD", "no tiles are configured");
  REQUIRE(state.rows[t] != 0, "#UD", "the configuration has no tile", t);
}

void move_rows(const Decoded& d) {
  const int t = d.reg;
  REQUIRE(d.has_sib, "#UD", "an address without a SIB byte");
  check_tile(d, t);
  REQUIRE(state.row_bytes[t] % 4 == 0, "#UD", "rows that are no multiple of 4 bytes, but", state.row_bytes[t]);
  REQUIRE(state.start_row < state.rows[t], "#UD", "the first row is behind the last:", state.start_row);
  const bool loads = d.instruction != tilestored;
  if (loads) {
    for (int r = state.start_row; r < kRows; ++r) {
      std::memset(state.data[t][r], 0, kRowBytes);
    }
  }
  for (int r = state.start_row; r < state.rows[t]; ++r) {
    uint8_t* memory = const_cast<uint8_t*>(d.address) + r * d.stride;
    loads ? std::memcpy(state.data[t][r], memory, state.row_bytes[t])
          : std::memcpy(memory, state.data[t][r], state.row_bytes[t]);
  }
  state.start_row = 0;
}

// Each of the two sums takes one fused product after the other; then they are added, and that to the tile. Not inlined:
// what the mode of rounding holds for must stay between its two changes.
__attribute__((target("avx512f"), noinline)) void product_of_row(int c, int a, int b, int m, __mmask16 columns) {
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  __m512 first = _mm512_setzero_ps(), second = _mm512_setzero_ps();
  for (int k = 0; k < state.rows[b]; ++k) {
    const __m512i pairs = _mm512_loadu_si512(state.data[b][k]);
    int pair;
    std::memcpy(&pair, state.data[a][m] + 4 * k, sizeof pair);
    const __m512i own = _mm512_set1_epi32(pair);
    first = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_maskz_slli_epi32(0xffff, own, 16)),
                            _mm512_castsi512_ps(_mm512_maskz_slli_epi32(0xffff, pairs, 16)), first);
    second = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(own, upper)),
                             _mm512_castsi512_ps(_mm512_and_si512(pairs, upper)), second);
  }
  const __m512 sum = _mm512_add_ps(_mm512_loadu_ps(state.data[c][m]), _mm512_add_ps(first, second));
  _mm512_storeu_ps(state.data[c][m], _mm512_maskz_mov_ps(columns, sum));
}

void multiply_add(const Decoded& d) {
  const int c = d.reg, a = d.rm, b = d.vvvv;
  REQUIRE(c != a && c != b && a != b, "#UD", "one tile twice");
  for (const int t : {c, a, b}) {
    check_tile(d, t);
    REQUIRE(state.row_bytes[t] % 4 == 0, "#UD", "rows that are no multiple of 4 bytes, but", state.row_bytes[t]);
  }
  REQUIRE(state.rows[c] == state.rows[a], "#UD", "sums and first operand differ in rows");
  REQUIRE(state.row_bytes[c] == state.row_bytes[b], "#UD", "sums and second operand differ in columns");
  REQUIRE(state.row_bytes[a] / 4 == state.rows[b], "#UD", "the first operand's pairs are not the second one's rows");
  REQUIRE(state.start_row == 0, "#UD", "the first row is", state.start_row);
  // To the nearest, ties to even; what is below 2^-126 counts as zero, operands and results; no exceptions.
  constexpr unsigned kMode = 0x9fc0;
  const unsigned mode = _mm_getcsr();
  _mm_setcsr(kMode);
  for (int m = 0; m < state.rows[c]; ++m) {
    product_of_row(c, a, b, m, static_cast<__mmask16>((1u << state.row_bytes[c] / 4) - 1));
  }
  _mm_setcsr(mode);
  for (int m = state.rows[c]; m < kRows; ++m) {
    std::memset(state.data[c][m], 0, kRowBytes);
  }
}

}  // namespace

void execute(const Decoded& d) {
  REQUIRE(d.w == 0 && d.l == 0 && !d.extended, "#UD", "a wrong prefix");
  REQUIRE(d.vvvv == 0 || d.instruction == tdpbf16ps, "#UD", "a wrong prefix");
  REQUIRE(permitted.load(), "#NM", "the system was not asked for the memory of tiles");
  executed[d.instruction].fetch_add(1, std::memory_order_relaxed);
  switch (d.instruction) {
    case ldtilecfg:
      return load_configuration(d);
    case sttilecfg:
      return store_configuration(d);
    case tilerelease:
      return set_configured(false);
    case tilezero:
      check_tile(d, d.reg);
      state.start_row = 0;
      std::memset(state.data[d.reg], 0, sizeof state.data[d.reg]);
      return;
    case tdpbf16ps:
      return multiply_add(d);
    default:
      return move_rows(d);
  }
}

void permit() { permitted = true; }

bool are_configured() { return state.configured; }

void report_to(int file, const uint8_t* library) {
  errors = file;
  places_from = reinterpret_cast<uint64_t>(library);
}

}  // namespace amx

extern "C" {

void amx_emulator_counts(uint64_t counts[amx::kInstructions]) {
  for (int i = 0; i < amx::kInstructions; ++i) {
    counts[i] = amx::executed[i].load();
  }
}

int amx_emulator_configured() { return amx::configured_now.load(); }
int amx_emulator_threads() { return amx::threads_seen.load(); }
}
