// Runs every TEST under every instruction set that this machine has, on one thread and on three.
// `make sanitize` builds it with the CPU kernels, which know nothing of PyTorch, and with sanitizers.

#include <algorithm>
#include <exception>
#include <thread>

#include "../../csrc/common/isa.h"
#include "../../csrc/common/parallel.h"
#include "check.h"

namespace {

int64_t threads = 1;

}  // namespace

namespace fastlrp {

void parallel_for(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
  const int64_t parts = std::clamp<int64_t>(count / std::max<int64_t>(grain, 1), 1, threads);
  if (count <= 0) {
    return;
  }
  const int64_t size = (count + parts - 1) / parts;
  std::vector<std::exception_ptr> errors(parts);
  std::vector<std::thread> workers;
  // The last range starts first, so that a range that relies on the one before it shows.
  for (int64_t part = parts - 1; part >= 0; --part) {
    workers.emplace_back([&, part] {
      try {
        if (part * size < count) {
          body(part * size, std::min((part + 1) * size, count));
        }
      } catch (...) {
        errors[part] = std::current_exception();
      }
    });
  }
  for (std::thread& worker : workers) {
    worker.join();
  }
  for (const std::exception_ptr& error : errors) {
    if (error) {
      std::rethrow_exception(error);
    }
  }
}

int64_t thread_count() { return threads; }

}  // namespace fastlrp

int main() {
  for (const std::string& isa : fastlrp::available_isas()) {
    fastlrp::set_isa(isa);
    for (const int64_t number : {1, 3}) {
      threads = number;
      for (const native::Case& test : native::cases()) {
        native::seed() = 0;
        test.run();
      }
    }
    std::printf("%s: %zu tests passed, on 1 and on 3 threads\n", isa.c_str(), native::cases().size());
  }
  return 0;
}
