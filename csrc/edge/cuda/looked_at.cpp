#include "looked_at.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <mutex>
#include <unordered_map>

#include "device.h"

namespace fastlrp::edge::cuda {
namespace {

// One tensor as it was. The weak reference keeps the storage's address from being used again.
struct Seen {
  c10::weak_intrusive_ptr<c10::StorageImpl> storage;
  const void* data;
  int64_t count;
  uint32_t version;

  explicit Seen(const at::Tensor& tensor)
      : storage(tensor.storage().getWeakStorageImpl()),
        data(tensor.const_data_ptr()),
        count(tensor.numel()),
        version(tensor.unsafeGetTensorImpl()->version_counter().current_version()) {}

  bool is(const at::Tensor& tensor) const {
    return !storage.expired() && data == tensor.const_data_ptr() && count == tensor.numel() &&
           version == tensor.unsafeGetTensorImpl()->version_counter().current_version();
  }
};

bool has_version(const at::Tensor& tensor) { return tensor.unsafeGetTensorImpl()->version_counter().enabled(); }

class LookedAt : public Known {
 public:
  int64_t limit(const at::Tensor& first, const at::Tensor& second) override {
    int64_t least = std::numeric_limits<int64_t>::max();
    if (has_version(first) && has_version(second)) {
      const std::lock_guard<std::mutex> lock(mutex_);
      const auto [begin, end] = pairs_.equal_range(key(first, second));
      for (auto pair = begin; pair != end; ++pair) {
        if (pair->second.first.is(first) && pair->second.second.is(second)) {
          least = std::min(least, pair->second.limit);
        }
      }
    }
    return least;
  }

  void add(const at::Tensor& first, const at::Tensor& second, int64_t limit) override {
    if (!has_version(first) || !has_version(second)) {
      return;
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    if (pairs_.size() >= room_) {
      std::erase_if(pairs_, [](const auto& pair) {
        return pair.second.first.storage.expired() || pair.second.second.storage.expired();
      });
      room_ = 2 * pairs_.size() + 256;
    }
    pairs_.emplace(key(first, second), Pair{Seen(first), Seen(second), limit});
  }

  void looked() override { count_read(); }

 private:
  struct Pair {
    Seen first, second;
    int64_t limit;
  };

  static uint64_t key(const at::Tensor& first, const at::Tensor& second) {
    const auto address = [](const at::Tensor& t) {
      return static_cast<uint64_t>(reinterpret_cast<uintptr_t>(t.storage().unsafeGetStorageImpl()));
    };
    return address(first) * 31 + address(second);
  }

  std::mutex mutex_;
  std::unordered_multimap<uint64_t, Pair> pairs_;
  size_t room_ = 256;
};

}  // namespace

Known& looked_at() {
  static LookedAt* known = new LookedAt;  // never destroyed: tensors may outlive the module
  return *known;
}

}  // namespace fastlrp::edge::cuda
