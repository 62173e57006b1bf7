#include "recurrence.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>

#include "../common/isa.h"
#include "../common/parallel.h"
#include "attention_kernel.h"

namespace fastlrp::cpu {
namespace {

// Targets that walk through the steps together: two strips of the product's rows. Their flows stay in the second cache.
constexpr int64_t kTargets = 24;
// Rows of flows that lie a multiple of 4 KiB apart would fall on the same lines of the first cache.
constexpr int64_t kPadding = 16;

struct Free {
  void operator()(void* data) const { ::operator delete(data, std::align_val_t{64}); }
};

template <class T>
std::unique_ptr<T, Free> room(int64_t size) {
  const size_t bytes = static_cast<size_t>(std::max<int64_t>(size, 1)) * sizeof(T);
  return std::unique_ptr<T, Free>(static_cast<T*>(::operator new(bytes, std::align_val_t{64})));
}

// One step of some targets of one sample. Rows of targets are `stride` apart in tensors that have steps.
template <class T>
struct Step {
  const Recurrence<T>* p;
  int64_t targets, at;           // at: sample times steps plus step
  const T* relevance;            // of the first target at this step
  T* flows;                      // the same
  const T* a;                    // (targets, P)
  T *arrived, *memory, *rows;    // (targets, P), (targets, H), (targets, J H + padding)
};

// What arrives at the hidden states.
template <class T>
struct Arrive {
  static FASTLRP_INLINE void run(const Step<T>* s) {
    const Recurrence<T>& p = *s->p;
    const int64_t P = p.hidden;
    const T* __restrict entry = p.entry + s->at * P;
    const T* __restrict scale = p.scale == nullptr ? nullptr : p.scale + s->at * P;
    for (int64_t k = 0; k < s->targets; ++k) {
      const T* __restrict r = s->relevance + k * p.steps * P;
      const T* __restrict a = s->a + k * P;
      T* __restrict to = s->arrived + k * P;
      if (scale == nullptr) {
        for (int64_t n = 0; n < P; ++n) {
          to[n] = entry[n] * r[n] + a[n];
        }
      } else {
        for (int64_t n = 0; n < P; ++n) {
          to[n] = entry[n] * r[n] + scale[n] * a[n];
        }
      }
    }
  }
};

// From what arrives at the memory to the flows at the gates' sums. `s->arrived` has H entries for each target.
template <class T>
struct Send {
  static FASTLRP_INLINE void run(const Step<T>* s) {
    const Recurrence<T>& p = *s->p;
    const int64_t H = p.size, P = p.hidden, width = p.blocks * H, stride = width + kPadding;
    const bool projected = p.projection != nullptr;
    const T* __restrict gate = p.gate == nullptr ? nullptr : p.gate + s->at * p.gates * H;
    const T* __restrict carry = p.carry == nullptr ? nullptr : p.carry + s->at * H;
    const T* __restrict reset = p.reset == nullptr ? nullptr : p.reset + s->at * H;
    const T* __restrict outer = p.output_scale == nullptr ? nullptr : p.output_scale + s->at * p.output_blocks * H;
    const T* __restrict output_entry = p.output_entry == nullptr ? nullptr : p.output_entry + s->at * H;
    for (int64_t k = 0; k < s->targets; ++k) {
      T* __restrict d = s->arrived + k * H;
      T* __restrict memory = s->memory + k * H;
      T* __restrict row = s->rows + k * stride;
      T* __restrict last = row + (p.blocks - 1) * H;
      if (projected && p.output_blocks == 2) {
        for (int64_t n = 0; n < H; ++n) {
          last[n] = outer[H + n] * d[n];
        }
      } else if (!projected && outer != nullptr) {
        const T* __restrict r = s->relevance + k * p.steps * P;
        const T* __restrict a = s->a + k * P;
        for (int64_t n = 0; n < H; ++n) {
          last[n] = output_entry[n] * r[n] + outer[n] * a[n];
        }
      }
      if (projected) {
        for (int64_t n = 0; n < H; ++n) {
          d[n] = outer[n] * d[n] + memory[n];
        }
      } else {
        for (int64_t n = 0; n < H; ++n) {
          d[n] += memory[n];
        }
      }
      for (int64_t g = 0; g < p.gates; ++g) {
        T* __restrict to = row + g * H;
        if (gate == nullptr) {
          std::memcpy(to, d, static_cast<size_t>(H) * sizeof(T));
        } else {
          for (int64_t n = 0; n < H; ++n) {
            to[n] = gate[g * H + n] * d[n];
          }
        }
      }
      if (carry != nullptr) {
        for (int64_t n = 0; n < H; ++n) {
          memory[n] = carry[n] * d[n];
        }
      } else {
        std::fill(memory, memory + H, T(0));
      }
      std::memcpy(s->flows + k * p.steps * width, row, static_cast<size_t>(width) * sizeof(T));
      if (reset != nullptr) {
        for (int64_t n = 0; n < H; ++n) {
          last[n] *= reset[n];
        }
      }
    }
  }
};

// c (rows, columns) = a (rows, depth) times the packed matrix.
template <class T>
Product<T> product_of(int64_t depth, int64_t columns, const T* a, int64_t a_stride, const T* packed, T* c) {
  Product<T> made{};
  made.depth = depth, made.columns = columns, made.a = a, made.a_stride = a_stride, made.along = true;
  made.b = packed, made.b_rows = depth, made.c = c, made.c_stride = columns, made.fresh = true;
  made.keys = Keys::all;
  return made;
}

template <class T>
class Walk {
 public:
  Walk(const Recurrence<T>& p, const AttentionKernel<T>& kernel, const T* weight, const T* projection)
      : p_(p),
        kernel_(kernel),
        weight_(weight),
        projection_(projection),
        a_(room<T>(kTargets * p.hidden)),
        arrived_(room<T>(kTargets * p.hidden)),
        projected_(room<T>(projection == nullptr ? 0 : kTargets * p.size)),
        memory_(room<T>(kTargets * p.size)),
        rows_(room<T>(kTargets * (p.blocks * p.size + kPadding))) {}

  // The targets [first, first + count) of a sample.
  void run(int64_t sample, int64_t first, int64_t count) {
    const int64_t H = p_.size, P = p_.hidden, width = p_.blocks * H, before = sample * p_.targets + first;
    std::fill(a_.get(), a_.get() + count * P, T(0));
    if (p_.final == nullptr) {
      std::fill(memory_.get(), memory_.get() + count * H, T(0));
    } else {
      std::copy(p_.final + before * H, p_.final + (before + count) * H, memory_.get());
    }
    Step<T> s{};
    s.p = &p_, s.targets = count, s.a = a_.get(), s.memory = memory_.get(), s.rows = rows_.get();
    Product<T> back = product_of(width, P, rows_.get(), width + kPadding, weight_, a_.get());
    Product<T> out = product_of(P, H, arrived_.get(), P, projection_, projected_.get());
    back.rows = out.rows = count;
    for (int64_t t = p_.steps - 1; t >= 0; --t) {
      s.at = sample * p_.steps + t;
      s.relevance = p_.relevance + (before * p_.steps + t) * P;
      s.flows = p_.flows + (before * p_.steps + t) * width;
      s.arrived = arrived_.get();
      run_best<Arrive<T>, const Step<T>*>(&s);
      if (projection_ != nullptr) {
        kernel_.product(out);
        s.arrived = projected_.get();
      }
      run_best<Send<T>, const Step<T>*>(&s);
      kernel_.product(back);
    }
    std::copy(a_.get(), a_.get() + count * P, p_.first + before * P);
    std::copy(memory_.get(), memory_.get() + count * H, p_.memory + before * H);
  }

 private:
  const Recurrence<T>& p_;
  const AttentionKernel<T>& kernel_;
  const T *weight_, *projection_;
  std::unique_ptr<T, Free> a_, arrived_, projected_, memory_, rows_;
};

template <class T>
std::unique_ptr<T, Free> packed(const AttentionKernel<T>& kernel, int64_t rows, int64_t columns, const T* matrix) {
  const int64_t whole = (columns + kernel.width - 1) / kernel.width * kernel.width;
  std::unique_ptr<T, Free> made = room<T>(rows * whole);
  kernel.pack(rows, columns, matrix, columns, T(1), made.get());
  return made;
}

}  // namespace

template <class T>
void recurrence_relevance(const Recurrence<T>& p) {
  const AttentionKernel<T> kernel = attention_kernel<T>();
  const auto weight = packed(kernel, p.blocks * p.size, p.hidden, p.weight);
  std::unique_ptr<T, Free> projection;
  if (p.projection != nullptr) {
    projection = packed(kernel, p.hidden, p.size, p.projection);
  }
  // As many targets at once as leave work for every thread.
  const int64_t share = (p.batch * p.targets + thread_count() - 1) / thread_count();
  const int64_t together = std::clamp<int64_t>(std::min(share, p.targets), 1, kTargets);
  const int64_t tasks = (p.targets + together - 1) / together;
  parallel_for(p.batch * tasks, 1, [&](int64_t begin, int64_t end) {
    Walk<T> walk(p, kernel, weight.get(), projection.get());
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task % tasks * together;
      walk.run(task / tasks, first, std::min(together, p.targets - first));
    }
  });
}

template void recurrence_relevance<float>(const Recurrence<float>& p);
template void recurrence_relevance<double>(const Recurrence<double>& p);

}  // namespace fastlrp::cpu
