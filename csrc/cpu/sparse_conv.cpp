// Relevance through a convolution (or a linear layer: one position) for alive neurons on both sides only:
//
//   c[q, ci] = sum over products j, taps t, alive o at p(q, t) of  w_j[t][o][ci] * u_j[p, o] * F[p, o]
//
// for the alive neurons ci of each input position q, where p(q, t) is the output position that tap t joins with q, and
// F, u, c are rows of targets. Work is cut into tiles of input positions, and up to kPanel targets of one at a time:
//
//   Tile      which positions q and blocks of ci, and the output positions p in their reach   sparse_tile.h
//   Packed    u_j[p, o] * F[p, o] for all of these, side by side                               sparse_packed.h
//             and as pairs of bfloat16                                                         sparse_pairs.h
//   Products  the sums over t and o, in blocks of w_j that fit into the first-level cache      sparse_products.h
//   Sums      where c is added up, what it begins with, and how it becomes a dense result      sparse_sums.h

#include <atomic>

#include "sparse_pairs.h"
#include "sparse_products.h"

namespace fastlrp::cpu {
namespace {

template <class T, class Number>
class Worker {
 public:
  explicit Worker(const Plan<T, Number>& plan)
      : plan_(plan), tile_(plan), packed_(plan), sums_(plan, tile_), products_(plan, tile_, packed_, sums_) {
    if (plan.product.begin != nullptr) {
      plan.product.begin();
    }
  }
  ~Worker() {
    if (plan_.product.end != nullptr) {
      plan_.product.end();
    }
  }
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  void work_on(int64_t item) {
    tile_.take(item);
    const int64_t targets = plan_.p.targets;
    for (int64_t first = 0; first < targets; first += kPanel) {
      const Panel panel(first, targets);
      packed_.take(tile_, panel);
      sums_.begin(panel);
      products_.add(panel);
      if (plan_.p.dense) {
        sums_.write_dense(panel);
      }
    }
  }

 private:
  const Plan<T, Number>& plan_;
  Tile<T, Number> tile_;
  Packed<T, Number> packed_;
  Sums<T, Number> sums_;
  Products<T, Number> products_;
};

}  // namespace

template <class T, class Number>
void sparse_conv_relevance(const SparseConv<T, Number>& p) {
  const Plan<T, Number> plan(p);
  const int64_t items = plan.tiling.tiles * plan.tiling.parts;
  if (items == 0 || p.targets == 0) {
    return;
  }
  std::atomic<int64_t> next{0};
  // Tiles differ in how many neurons are alive: threads take the next one. Each result has one writer and one order.
  parallel_for(thread_count(), 1, [&](int64_t, int64_t) {
    Worker<T, Number> worker(plan);
    for (int64_t item; (item = next.fetch_add(1, std::memory_order_relaxed)) < items;) {
      worker.work_on(item);
    }
  });
}

template void sparse_conv_relevance(const SparseConv<float>&);
template void sparse_conv_relevance(const SparseConv<double>&);
template void sparse_conv_relevance(const SparseConv<float, Bf16>&);

}  // namespace fastlrp::cpu
