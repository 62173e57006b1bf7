#include "memory.h"

#include <algorithm>
#include <cstdint>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace fastlrp {

namespace {
constexpr std::align_val_t kAlignment{64};
}

void prefer_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  // From this size on glibc maps every block anew; a smaller one may be heap that is mapped already.
  constexpr size_t kFreshlyMapped = size_t{32} << 20;
  constexpr uintptr_t kHugePage = uintptr_t{2} << 20;
  if (bytes < kFreshlyMapped) {
    return;
  }
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / kHugePage * kHugePage;
  // Advice only: a kernel without huge pages refuses, and nothing is lost.
  (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

BufferPool& BufferPool::shared() {
  // Never destroyed: tensors may outlive the module.
  static BufferPool* pool = new BufferPool;
  return *pool;
}

void* BufferPool::acquire(size_t bytes) {
  const std::lock_guard<std::mutex> lock(mutex_);
  Block* best = nullptr;
  for (Block& block : blocks_) {
    if (!block.in_use && block.bytes >= bytes && (best == nullptr || block.bytes < best->bytes)) {
      best = &block;
    }
  }
  if (best == nullptr) {
    trim_locked();
    void* data = ::operator new(bytes, kAlignment);
    prefer_huge_pages(data, bytes);
    blocks_.push_back({data, bytes, false});
    best = &blocks_.back();
  }
  best->in_use = true;
  return best->data;
}

void BufferPool::release(void* data) {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (Block& block : blocks_) {
    if (block.data == data) {
      block.in_use = false;
      return;
    }
  }
}

void BufferPool::trim() {
  const std::lock_guard<std::mutex> lock(mutex_);
  trim_locked();
}

void BufferPool::trim_locked() {
  const auto is_free = [](const Block& block) { return !block.in_use; };
  for (const Block& block : blocks_) {
    if (is_free(block)) {
      ::operator delete(block.data, kAlignment);
    }
  }
  blocks_.erase(std::remove_if(blocks_.begin(), blocks_.end(), is_free), blocks_.end());
}

size_t BufferPool::free_bytes() {
  const std::lock_guard<std::mutex> lock(mutex_);
  size_t total = 0;
  for (const Block& block : blocks_) {
    total += block.in_use ? 0 : block.bytes;
  }
  return total;
}

}  // namespace fastlrp
