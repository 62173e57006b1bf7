#include "bits.h"

#include <cstring>
#include <utility>

#include "../common/bits.h"
#include "marks.h"
#include "require.h"

namespace fastlrp::edge {
namespace {

bool is_bytes(const Tensor& part) { return part.scalar_type() == ScalarType::Byte; }

// The numbers of a part one after the other, in whole words.
std::vector<int64_t> kept_of(const Tensor& part) {
  const int64_t count = part.numel();
  std::vector<int64_t> kept(is_bytes(part) ? (count + 7) / 8 : count);
  if (is_bytes(part)) {
    std::memcpy(kept.data(), part.const_data_ptr(), static_cast<size_t>(count));
    return kept;
  }
  const int64_t *words = part.const_data_ptr<int64_t>(), step = count > 1 ? part.stride(0) : 1;
  for (int64_t i = 0; i < count; ++i) {
    kept[i] = words[i * step];
  }
  return kept;
}

void require_memory(const char* name, const Tensor& tensor, int64_t axes) {
  REQUIRE_VALUE(tensor.is_dense() && tensor.is_cpu() && tensor.dim() == axes, "Bits: ", name, " must have ", axes,
                " axes and memory on the CPU");
}

}  // namespace

Bits::Bits(std::vector<Tensor> parts, std::vector<Tensor> rows) : parts_(std::move(parts)), rows_(std::move(rows)) {
  for (const Tensor& part : parts_) {
    require_memory("parts", part, 1);
    const bool words = part.scalar_type() == kLong;
    REQUIRE_VALUE(words || (is_bytes(part) && part.is_contiguous()), "Bits: parts must be words or contiguous bytes");
    kept_.push_back(kept_of(part));
  }
  for (const Tensor& piece : rows_) {
    require_memory("rows", piece, 2);
    REQUIRE_VALUE(piece.scalar_type() == kLong && piece.size(1) == kRowWords && piece.is_contiguous(),
                  "Bits: rows must be contiguous (N, ", kRowWords, ") words");
    sums_.emplace_back(piece.size(0));
    row_sums(piece.const_data_ptr<int64_t>(), piece.size(0), sums_.back().data());
  }
}

bool Bits::parts_differ() const {
  for (size_t i = 0; i < parts_.size(); ++i) {
    const Tensor& part = parts_[i];
    const int64_t count = part.numel();
    const bool same =
        is_bytes(part)
            ? std::memcmp(part.const_data_ptr(), kept_[i].data(), static_cast<size_t>(count)) == 0
            : same_words(part.const_data_ptr<int64_t>(), count > 1 ? part.stride(0) : 1, count, kept_[i].data());
    if (!same) {
      return true;
    }
  }
  return false;
}

int64_t Bits::look(int64_t first, int64_t bytes) const {
  if (parts_differ()) {
    return -1;
  }
  const int64_t count = static_cast<int64_t>(rows_.size());
  REQUIRE_VALUE(first >= 0 && first <= count, "Bits: there are ", count, " tensors of rows, and none is number ",
                first);
  std::vector<int64_t> now;
  while (count > 0 && bytes > 0) {
    const Tensor& rows = rows_[first];
    now.resize(rows.size(0));
    row_sums(rows.const_data_ptr<int64_t>(), rows.size(0), now.data());
    if (now != sums_[first]) {
      return -1;
    }
    bytes -= rows.nbytes(), first = (first + 1) % count;
  }
  return first;
}

std::optional<bool> all_finite(void* tensor) {
  const std::optional<Memory> memory = Memory::of(tensor);
  const bool readable = memory.has_value() && memory->on_cpu && memory->contiguous;
  if (!readable || (memory->data == nullptr && memory->numel > 0)) {
    return std::nullopt;
  }
  if (memory->dtype == kFloat) {
    return fastlrp::all_finite(static_cast<const float*>(memory->data), memory->numel);
  }
  if (memory->dtype == kDouble) {
    return fastlrp::all_finite(static_cast<const double*>(memory->data), memory->numel);
  }
  return std::nullopt;
}

}  // namespace fastlrp::edge
