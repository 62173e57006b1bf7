#include "norm.h"

#include <algorithm>

#include "../common/isa.h"
#include "../common/parallel.h"

namespace fastlrp::cpu {
namespace {

constexpr int64_t kLanes = 16;

template <class T>
struct Rows {
  // Rows [begin, end) of all samples and targets. A row is in the first cache when its mean is taken away.
  FASTLRP_INLINE static void run(const Norm<T>* p, int64_t begin, int64_t end) {
    const int64_t size = p->size, whole = size / kLanes * kLanes, block = p->targets * p->rows;
    for (int64_t row = begin; row < end; ++row) {
      const int64_t place = row / block * p->rows + row % p->rows;  // of the sample and position
      const T* __restrict g = p->relevance + row * size;
      const T* gain = p->gain == nullptr ? nullptr : p->gain + (p->gain_by_row ? place * size : 0);
      T* __restrict c = p->result + row * size;
      const T inverse = p->inverse_sigma[place];
      if (gain == nullptr) {
        for (int64_t i = 0; i < size; ++i) {
          c[i] = g[i] * inverse;
        }
      } else {
        for (int64_t i = 0; i < size; ++i) {
          c[i] = g[i] * (gain[i] * inverse);
        }
      }
      if (!p->centre) {
        continue;
      }
      T sums[kLanes] = {};
      for (int64_t i = 0; i < whole; i += kLanes) {
        for (int64_t lane = 0; lane < kLanes; ++lane) {
          sums[lane] += c[i + lane];
        }
      }
      T sum = 0;
      for (int64_t i = whole; i < size; ++i) {
        sum += c[i];
      }
      for (int64_t half = kLanes / 2; half > 0; half /= 2) {
        for (int64_t lane = 0; lane < half; ++lane) {
          sums[lane] += sums[lane + half];
        }
      }
      const T mean = (sum + sums[0]) / static_cast<T>(size);
      for (int64_t i = 0; i < size; ++i) {
        c[i] -= mean;
      }
    }
  }
};

}  // namespace

template <class T>
void norm_relevance(const Norm<T>& p) {
  const int64_t grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(1, p.size));
  parallel_for(p.batch * p.targets * p.rows, grain,
               [&](int64_t begin, int64_t end) { run_best<Rows<T>>(&p, begin, end); });
}

template void norm_relevance<float>(const Norm<float>& p);
template void norm_relevance<double>(const Norm<double>& p);

}  // namespace fastlrp::cpu
