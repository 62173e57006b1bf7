// Kernels run on the threads that PyTorch runs on: the same OpenMP library, which PyTorch has loaded before.
#include <algorithm>
#include <exception>
#include <mutex>

#include "../common/parallel.h"
#ifdef _OPENMP
#include <omp.h>
#endif

namespace fastlrp {

int64_t thread_count() {
#ifdef _OPENMP
  return omp_in_parallel() ? 1 : omp_get_max_threads();
#else
  return 1;
#endif
}

void parallel_for(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
  if (count <= 0) {
    return;
  }
  [[maybe_unused]] const int64_t threads = std::min(thread_count(), (count + grain - 1) / std::max<int64_t>(1, grain));
#ifdef _OPENMP
  if (threads > 1) {
    std::exception_ptr thrown;
    std::mutex mutex;
#pragma omp parallel num_threads(static_cast<int>(threads))
    {
      const int64_t each = (count + omp_get_num_threads() - 1) / omp_get_num_threads();
      const int64_t begin = omp_get_thread_num() * each;
      try {
        if (begin < count) {
          body(begin, std::min(begin + each, count));
        }
      } catch (...) {
        const std::lock_guard<std::mutex> lock(mutex);
        thrown = thrown ? thrown : std::current_exception();
      }
    }
    if (thrown) {
      std::rethrow_exception(thrown);
    }
    return;
  }
#endif
  body(0, count);
}

}  // namespace fastlrp
