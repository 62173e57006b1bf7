#include "attention.h"

#include <algorithm>
#include <limits>
#include <memory>
#include <new>
#include <vector>

#include "../common/parallel.h"

namespace fastlrp::cpu {
namespace {

// A tile of probabilities, 256 KiB, and as many scores stay in the second cache. With 128 x 128 the sums of keys and
// values are read and written twice as often: 175 GFLOP/s against 199 at S = 1024, K = 8 (AMD EPYC, AVX-512, 1 thread).
constexpr int64_t kRows = 256;
template <class T>
constexpr int64_t kKeysOf = 1024 / static_cast<int64_t>(sizeof(T));

struct Free {
  void operator()(void* data) const { ::operator delete(data, std::align_val_t{64}); }
};

template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t size)
      : data_(size == 0
                  ? nullptr
                  : static_cast<T*>(::operator new(static_cast<size_t>(size) * sizeof(T), std::align_val_t{64}))) {}
  T* data() const { return data_.get(); }

 private:
  std::unique_ptr<T, Free> data_;
};

int64_t up(int64_t number, int64_t step) { return (number + step - 1) / step * step; }

// Some targets of one sample and key head, with all query heads that read it, and then of others.
template <class T>
class Head {
 public:
  Head(const Attention<T>& p, const AttentionKernel<T>& kernel, int64_t targets)
      : p_(p),
        kernel_(kernel),
        all_(p.value.data != nullptr),
        tiles_((p.keys + kKeys - 1) / kKeys),
        padded_(up(std::min(p.keys, kKeys), kernel.width)),
        size_(up(p.size, kernel.width)),
        value_size_(up(p.value_size, kernel.width)),
        key_columns_(tiles_ * padded_ * p.size),
        value_columns_(all_ ? tiles_ * padded_ * p.value_size : 0),
        key_rows_(all_ ? p.keys * size_ : 0),
        queries_(kRows * size_),
        flow_(kRows * value_size_),
        probabilities_(kRows * padded_),
        factors_(p.cap > 0 || (p.epsilon > 0 && all_) ? kRows * padded_ : 0),
        scores_(all_ ? kRows * padded_ : 0),
        delta_(targets * kRows),
        ranges_(targets),
        fresh_query_(targets) {}

  // The targets [first, last).
  void run(int64_t sample, int64_t head, int64_t first, int64_t last) {
    b_ = sample, g_ = head, first_ = first, count_ = last - first;
    fresh_key_.assign(count_ * tiles_, true);
    pack_keys();
    const int64_t group = p_.heads / p_.key_heads;
    for (int64_t h = g_ * group; h < (g_ + 1) * group; ++h) {
      for (int64_t row = 0; row < p_.rows; row += kRows) {
        rows_of(h, row, std::min(kRows, p_.rows - row));
      }
    }
    for (int64_t k = 0; k < count_; ++k) {
      for (int64_t tile = 0; tile < tiles_; ++tile) {
        if (fresh_key_[k * tiles_ + tile]) {
          const int64_t from = tile * kKeys, count = keys_of(tile);
          clear(p_.c_value, k, g_, from, count, p_.value_size);
          if (all_) {
            clear(p_.c_key, k, g_, from, count, p_.size);
          }
        }
      }
    }
  }

 private:
  static constexpr int64_t kKeys = kKeysOf<T>;

  struct Range {
    int64_t begin, end;
  };

  int64_t keys_of(int64_t tile) const { return std::min(kKeys, p_.keys - tile * kKeys); }

  void pack_keys() {
    for (int64_t tile = 0; tile < tiles_; ++tile) {
      const int64_t from = tile * kKeys, count = keys_of(tile), stride = p_.key.strides.row;
      const T* key = p_.key.at(b_, 0, g_, from);
      kernel_.pack_transposed(count, p_.size, key, stride, p_.scale, key_columns_.data() + tile * padded_ * p_.size);
      if (all_) {
        kernel_.pack_transposed(count, p_.value_size, p_.value.at(b_, 0, g_, from), p_.value.strides.row, T(1),
                                value_columns_.data() + tile * padded_ * p_.value_size);
        kernel_.pack(count, p_.size, key, stride, p_.scale * p_.share_query, key_rows_.data() + from * size_);
      }
    }
  }

  // Query rows [row, row + count) of a head.
  void rows_of(int64_t h, int64_t row, int64_t count) {
    std::fill_n(fresh_query_.begin(), count_, true);
    const int64_t reach = p_.causal ? std::min(p_.keys, row + count) : p_.keys;
    int64_t known = 0;  // How many targets have been looked at: each just before its first use.
    bool packed = !all_;
    for (int64_t tile = 0; tile * kKeys < reach; ++tile) {
      bool made = false;
      for (int64_t k = 0; k < count_; ++k) {
        if (k == known) {
          look_at(k, h, row, count);
          ++known;
        }
        if (ranges_[k].begin == ranges_[k].end) {
          continue;
        }
        if (!made && !make_probabilities(h, row, count, tile)) {
          break;
        }
        made = true;
        if (!packed) {
          kernel_.pack(count, p_.size, p_.query.at(b_, 0, h, row), p_.query.strides.row, p_.scale * p_.share_key,
                       queries_.data());
          packed = true;
        }
        target(k, h, row, count, tile);
      }
    }
    for (int64_t k = 0; all_ && k < count_; ++k) {
      if (fresh_query_[k]) {
        clear(p_.c_query, k, h, row, count, p_.size);
      }
    }
  }

  // A target's deltas in these rows, and which of them are not zero.
  void look_at(int64_t k, int64_t h, int64_t row, int64_t count) {
    kernel_.flow(count, p_.value_size, p_.relevance.at(b_, first_ + k, h, row), p_.relevance.strides.row,
                 all_ ? p_.output.at(b_, 0, h, row) : nullptr, p_.output.strides.row,
                 all_ ? delta_.data() + k * kRows : nullptr, &ranges_[k].begin, &ranges_[k].end);
  }

  // Whether a probability of the tile is not zero.
  bool make_probabilities(int64_t h, int64_t row, int64_t count, int64_t tile) {
    const int64_t from = tile * kKeys, keys = keys_of(tile);
    const bool has_mask = p_.kind != Mask::none;
    const char* mask = static_cast<const char*>(p_.mask);
    if (has_mask) {
      const int64_t bytes = p_.kind == Mask::flags ? sizeof(bool) : sizeof(T);
      mask += (p_.mask_strides.at(b_, 0, h, row) + from * p_.mask_key) * bytes;
      if (hides(mask, count, keys)) {
        return false;
      }
    }
    const int64_t stride = up(keys, kernel_.width);
    kernel_.product({count, p_.size, stride, p_.query.at(b_, 0, h, row), p_.query.strides.row, true,
                     key_columns_.data() + tile * padded_ * p_.size, p_.size, 0, probabilities_.data(), stride, true,
                     nullptr, nullptr, p_.causal ? Keys::in_columns : Keys::all, row - from + 1});
    return kernel_.probabilities({count, keys, stride, probabilities_.data(), factors_.data(), stride,
                                  p_.log_sum + (b_ * p_.heads + h) * p_.rows + row, p_.causal, row - from + 1, p_.kind,
                                  mask, p_.mask_strides.row, p_.mask_key, p_.cap, p_.epsilon});
  }

  // Whether nobody attends to anything in the tile. Rows are looked at as a whole, which is vector code: in a sliding
  // window most tiles are hidden, and looking is all that they cost.
  bool hides(const char* mask, int64_t count, int64_t keys) const {
    const int64_t rows = p_.mask_strides.row == 0 ? 1 : count, columns = p_.mask_key == 0 ? 1 : keys;
    for (int64_t r = 0; r < rows; ++r) {
      const bool attends =
          p_.kind == Mask::flags
              ? any(reinterpret_cast<const uint8_t*>(mask) + r * p_.mask_strides.row, columns, uint8_t(0))
              : any(reinterpret_cast<const T*>(mask) + r * p_.mask_strides.row, columns,
                    -std::numeric_limits<T>::infinity());
      if (attends) {
        return false;
      }
    }
    return true;
  }

  template <class Entry>
  bool any(const Entry* row, int64_t count, Entry nothing) const {
    int found = 0;
    if (p_.mask_key == 1) {
      for (int64_t t = 0; t < count; ++t) {
        found |= static_cast<int>(row[t] != nothing);
      }
    } else {
      for (int64_t t = 0; t < count; ++t) {
        found |= static_cast<int>(row[t * p_.mask_key] != nothing);
      }
    }
    return found != 0;
  }

  // Relevance of a target through the tile; rows of the flow that are all zero bring nothing.
  void target(int64_t k, int64_t h, int64_t row, int64_t count, int64_t tile) {
    const auto [begin, end] = ranges_[k];
    const int64_t from = tile * kKeys, keys = keys_of(tile), stride = up(keys, kernel_.width), rows = end - begin;
    const T* g = p_.relevance.at(b_, first_ + k, h, row + begin);
    const T* probabilities = probabilities_.data() + begin * stride;
    const bool fresh = fresh_key_[k * tiles_ + tile];
    const int64_t reach = row + begin - from + 1;
    const auto where = [&](Keys keys) { return p_.causal ? keys : Keys::all; };
    kernel_.pack(rows, p_.value_size, g, p_.relevance.strides.row, p_.share_value, flow_.data());
    kernel_.product({keys, rows, p_.value_size, probabilities, stride, false, flow_.data(), rows, 0,
                     p_.c_value.at(b_, first_ + k, g_, from), p_.c_value.strides.row, fresh, nullptr, nullptr,
                     where(Keys::in_rows), reach});
    fresh_key_[k * tiles_ + tile] = false;
    if (!all_) {
      return;
    }
    T* scores = scores_.data();
    const T* factor = factors_.data() == nullptr ? probabilities : factors_.data() + begin * stride;
    kernel_.product({rows, p_.value_size, stride, g, p_.relevance.strides.row, true,
                     value_columns_.data() + tile * padded_ * p_.value_size, p_.value_size, 0, scores, stride, true,
                     factor, delta_.data() + k * kRows + begin, where(Keys::in_columns), reach});
    kernel_.product({keys, rows, p_.size, scores, stride, false, queries_.data(), count, begin,
                     p_.c_key.at(b_, first_ + k, g_, from), p_.c_key.strides.row, fresh, nullptr, nullptr,
                     where(Keys::in_rows), reach});
    if (fresh_query_[k]) {
      clear(p_.c_query, k, h, row, begin, p_.size);
      clear(p_.c_query, k, h, row + end, count - end, p_.size);
    }
    kernel_.product({rows, keys, p_.size, scores, stride, true, key_rows_.data() + from * size_, keys, 0,
                     p_.c_query.at(b_, first_ + k, h, row + begin), p_.c_query.strides.row, fresh_query_[k] != 0,
                     nullptr, nullptr, where(Keys::in_depth), reach});
    fresh_query_[k] = false;
  }

  void clear(const Rows<T>& rows, int64_t k, int64_t head, int64_t row, int64_t count, int64_t size) const {
    for (int64_t r = 0; r < count; ++r) {
      std::fill_n(rows.at(b_, first_ + k, head, row + r), size, T(0));
    }
  }

  const Attention<T>& p_;
  const AttentionKernel<T>& kernel_;
  int64_t b_ = 0, g_ = 0, first_ = 0, count_ = 0;
  const bool all_;
  const int64_t tiles_, padded_, size_, value_size_;
  // Packed: scale k^T and v^T, in panels of keys, tile after tile; then scale share_query k, scale share_key q and
  // share_value g.
  const Scratch<T> key_columns_, value_columns_, key_rows_, queries_, flow_;
  const Scratch<T> probabilities_, factors_, scores_, delta_;
  std::vector<Range> ranges_;
  std::vector<char> fresh_query_, fresh_key_;  // nothing has been written yet to rows of c_query; of c_key and c_value
};

}  // namespace

template <class T>
void attention_relevance(const Attention<T>& p) {
  const AttentionKernel<T> kernel = attention_kernel<T>();
  const int64_t heads = p.batch * p.key_heads;
  if (heads == 0 || p.targets == 0) {
    return;
  }
  // Where there are fewer heads than threads, each has a part of the targets, and the same probabilities made again.
  const int64_t parts = std::clamp<int64_t>(thread_count() / heads, 1, p.targets);
  parallel_for(heads * parts, 1, [&](int64_t begin, int64_t end) {
    Head<T> worker(p, kernel, (p.targets + parts - 1) / parts);
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t head = unit / parts, part = unit % parts;
      worker.run(head / p.key_heads, head % p.key_heads, part * p.targets / parts, (part + 1) * p.targets / parts);
    }
  });
}

template void attention_relevance<float>(const Attention<float>& p);
template void attention_relevance<double>(const Attention<double>& p);

}  // namespace fastlrp::cpu
