#include "emulator.h"

#include <fcntl.h>
#include <link.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstdlib>
#include <cstring>
#include <new>

#include "tiles.h"

namespace {

using amx::Decoded;

struct sigaction before;
std::atomic<int> allocations_left{0};
int errors = 2;

struct Patched {
  const uint8_t* at;
  bool is_cpuid;
};
constexpr int kMostPatched = 64;
Patched patched[kMostPatched];
std::atomic<int> patched_count{0};

// What a processor with AMX says. Returns the length of the instruction, or 0: none of those that were written over.
int identify(ucontext_t* context, const uint8_t* at) {
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24, kTileState = 3u << 17;
  greg_t* registers = context->uc_mcontext.gregs;
  for (int i = 0; i < patched_count.load(); ++i) {
    if (patched[i].at != at) {
      continue;
    }
    unsigned a = static_cast<unsigned>(registers[REG_RAX]), b = 0, c = static_cast<unsigned>(registers[REG_RCX]), d = 0;
    const unsigned leaf = a, part = c;
    if (patched[i].is_cpuid) {
      __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
      d |= leaf == 7 && part == 0 ? kBf16 | kTile : 0;
      registers[REG_RBX] = b, registers[REG_RCX] = c;
    } else {
      __asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(part));
      a |= part == 0 ? kTileState : 0;
    }
    registers[REG_RAX] = a, registers[REG_RDX] = d;
    return patched[i].is_cpuid ? 2 : 3;
  }
  return 0;
}

void on_illegal(int signal, siginfo_t* info, void* given) {
  auto* context = static_cast<ucontext_t*>(given);
  greg_t& next = context->uc_mcontext.gregs[REG_RIP];
  const auto* at = reinterpret_cast<const uint8_t*>(next);
  if (at[0] == 0x0f && at[1] == 0x0b) {
    next += identify(context, at);
  }
  // Those that follow at once need no signal of their own.
  for (Decoded decoded; amx::decode(context, reinterpret_cast<const uint8_t*>(next), decoded);) {
    amx::execute(decoded);
    next += decoded.length;
  }
  if (next != reinterpret_cast<greg_t>(at)) {
    return;
  }
  if ((before.sa_flags & SA_SIGINFO) != 0) {
    before.sa_sigaction(signal, info, given);
  } else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) {
    before.sa_handler(signal);
  } else {
    sigaction(signal, &before, nullptr);  // Executed again, the instruction ends the process.
  }
}

struct Wanted {
  const char* name;
  uint8_t* begin;
};

int find_library(dl_phdr_info* info, size_t, void* given) {
  auto* wanted = static_cast<Wanted*>(given);
  if (std::strcmp(info->dlpi_name, wanted->name) != 0) {
    return 0;
  }
  wanted->begin = reinterpret_cast<uint8_t*>(info->dlpi_addr);
  return 1;
}

__attribute__((constructor)) void start() {
  errors = fcntl(2, F_DUPFD_CLOEXEC, 100);
  if (errors < 0) {
    errors = 2;
  }
  amx::report_to(errors, nullptr);
  amx_emulator_install();
}

}  // namespace

extern "C" {

void amx_emulator_install() {
  struct sigaction ours = {}, present = {};
  ours.sa_sigaction = on_illegal;
  ours.sa_flags = SA_SIGINFO;
  sigemptyset(&ours.sa_mask);
  sigaction(SIGILL, nullptr, &present);
  if ((present.sa_flags & SA_SIGINFO) == 0 || present.sa_sigaction != on_illegal) {
    before = present;
    sigaction(SIGILL, &ours, nullptr);
  }
}

int amx_emulator_patch(const char* library, const uint64_t* offsets, int count) {
  constexpr uint8_t kCpuid[] = {0x0f, 0xa2}, kXgetbv[] = {0x0f, 0x01, 0xd0}, kUd2[] = {0x0f, 0x0b};
  Wanted wanted{library, nullptr};
  if (count > kMostPatched || dl_iterate_phdr(find_library, &wanted) == 0) {
    return -1;
  }
  amx::report_to(errors, wanted.begin);
  const auto page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  for (int i = 0; i < count; ++i) {
    uint8_t* at = wanted.begin + offsets[i];
    const bool is_cpuid = std::memcmp(at, kCpuid, sizeof kCpuid) == 0;
    if (!is_cpuid && std::memcmp(at, kXgetbv, sizeof kXgetbv) != 0) {
      return -1;
    }
    auto* from = reinterpret_cast<uint8_t*>(reinterpret_cast<uint64_t>(at) / page * page);
    const auto size = static_cast<size_t>(at + sizeof kUd2 - from);
    if (mprotect(from, size, PROT_READ | PROT_WRITE | PROT_EXEC) != 0) {
      return -1;
    }
    patched[i] = {at, is_cpuid};
    patched_count.store(i + 1);
    std::memcpy(at, kUd2, sizeof kUd2);
    mprotect(from, size, PROT_READ | PROT_EXEC);
  }
  return 0;
}

void amx_emulator_load_configuration(const void* configuration) {
  __asm__ volatile("ldtilecfg (%0)" : : "r"(configuration) : "memory");
}

void amx_emulator_store_configuration(void* configuration) {
  __asm__ volatile("sttilecfg (%0)" : : "r"(configuration) : "memory");
}

void amx_emulator_fail_allocation(int count) { allocations_left = count; }

// In place of the C library's: Linux gives the memory for tiles to a process that asks for it.
long syscall(long number, ...) noexcept {
  constexpr long kRequest = 0x1023, kTileData = 18;
  long argument[6];
  va_list list;
  va_start(list, number);
  for (long& each : argument) {
    each = va_arg(list, long);
  }
  va_end(list);
  if (number == SYS_arch_prctl && argument[0] == kRequest && argument[1] == kTileData) {
    amx::permit();
    return 0;
  }
  long result = number;
  register long r10 __asm__("r10") = argument[3];
  register long r8 __asm__("r8") = argument[4];
  register long r9 __asm__("r9") = argument[5];
  __asm__ volatile("syscall"
                   : "+a"(result)
                   : "D"(argument[0]), "S"(argument[1]), "d"(argument[2]), "r"(r10), "r"(r8), "r"(r9)
                   : "rcx", "r11", "memory");
  if (result < 0 && result > -4096) {
    errno = static_cast<int>(-result);
    return -1;
  }
  return result;
}
}

// In place of the C++ library's, whose `operator delete` calls free.
void* operator new(size_t size, std::align_val_t alignment) {
  if (amx::are_configured() && allocations_left.load() > 0 && allocations_left.fetch_sub(1) == 1) {
    throw std::bad_alloc();
  }
  const size_t unit = static_cast<size_t>(alignment);
  void* memory = std::aligned_alloc(unit, (size + unit - 1) / unit * unit);
  if (memory == nullptr) {
    throw std::bad_alloc();
  }
  return memory;
}
