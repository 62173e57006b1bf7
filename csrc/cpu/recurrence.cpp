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

// Targets that walk through the steps together: three strips of the product's rows. Their flows stay in the second
// cache.
constexpr int64_t kTargets = 36;
// Rows of the product with the input's weight: fewer targets wait for further steps.
constexpr int64_t kRows = 24;
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

// In sixteen sums, which compilers keep in registers.
template <class T>
FASTLRP_INLINE T dot(int64_t size, const T* __restrict a, const T* __restrict b) {
  T part[16] = {}, sum = 0;
  int64_t n = 0;
  for (; n + 16 <= size; n += 16) {
    for (int64_t i = 0; i < 16; ++i) {
      part[i] += a[n + i] * b[n + i];
    }
  }
  for (; n < size; ++n) {
    sum += a[n] * b[n];
  }
  for (const T& one : part) {
    sum += one;
  }
  return sum;
}

// One step of some targets of one sample. Rows of targets are `stride` apart in tensors that have steps.
template <class T>
struct Step {
  const Recurrence<T>* p;
  int64_t targets, at;  // at: sample times steps plus step
  const T* relevance;   // of the first target at this step
  T* flows;             // null, or the same
  const T* a;           // (targets, P)
  T *arrived, *memory;  // (targets, P), (targets, H)
  T *rows, *to_hidden;  // s of each target, `rows_stride` and J H + padding apart; s with its last block reset
  int64_t rows_stride;
  T *to_all, *of_output;  // (targets) each: what all lower units get, and all units of a projected memory
  T* sums;                // null, or `to_all` of the first target
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
      const T all = s->to_all[k];
      if (scale == nullptr) {
        for (int64_t n = 0; n < P; ++n) {
          to[n] = entry[n] * (r[n] + all) + a[n];
        }
      } else {
        for (int64_t n = 0; n < P; ++n) {
          to[n] = entry[n] * (r[n] + all) + scale[n] * a[n];
        }
      }
      s->of_output[k] = p.spreads == 4 ? dot(P, p.spread + (s->at * 4 + 3) * p.size, s->arrived + k * P) : T(0);
    }
  }
};

// From what arrives at the memory to the flows at the gates' sums. `s->arrived` has H entries for each target.
template <class T>
struct Send {
  static FASTLRP_INLINE void run(const Step<T>* s) {
    const Recurrence<T>& p = *s->p;
    const int64_t H = p.size, P = p.hidden, width = p.blocks * H;
    const bool projected = p.projection != nullptr;
    const T* __restrict gate = p.gate == nullptr ? nullptr : p.gate + s->at * p.gates * H;
    const T* __restrict carry = p.carry == nullptr ? nullptr : p.carry + s->at * H;
    const T* __restrict reset = p.reset == nullptr ? nullptr : p.reset + s->at * H;
    const T* __restrict outer = p.output_scale == nullptr ? nullptr : p.output_scale + s->at * p.output_blocks * H;
    const T* __restrict output_entry = p.output_entry == nullptr ? nullptr : p.output_entry + s->at * H;
    const T* __restrict spread = p.spread == nullptr ? nullptr : p.spread + s->at * p.spreads * H;
    for (int64_t k = 0; k < s->targets; ++k) {
      T* __restrict d = s->arrived + k * H;
      T* __restrict memory = s->memory + k * H;
      T* __restrict row = s->rows + k * s->rows_stride;
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
        const T all = s->of_output[k];
        for (int64_t n = 0; n < H; ++n) {
          d[n] = outer[n] * d[n] + (memory[n] + all);
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
      if (spread != nullptr) {
        const T all = dot<T>(H, spread, d);
        for (int64_t n = 0; n < H; ++n) {
          row[n] += spread[H + n] * all;
          memory[n] += carry == nullptr ? T(0) : all;
        }
        s->to_all[k] = s->sums[k * p.steps] = dot<T>(H, spread + 2 * H, row);
      }
      if (s->flows != nullptr) {
        std::memcpy(s->flows + k * p.steps * width, row, static_cast<size_t>(width) * sizeof(T));
      }
      if (reset != nullptr) {
        T* __restrict to = s->to_hidden + k * (width + kPadding);
        std::memcpy(to, row, static_cast<size_t>(width - H) * sizeof(T));
        for (int64_t n = 0; n < H; ++n) {
          to[width - H + n] = last[n] * reset[n];
        }
      }
    }
  }
};

// c (rows, columns) = a (rows, depth) times the packed matrix.
template <class T>
Product<T> product_of(int64_t depth, int64_t columns, const T* packed) {
  Product<T> made{};
  made.depth = depth, made.columns = columns, made.along = true;
  made.b = packed, made.b_rows = depth, made.c_stride = columns, made.fresh = true;
  made.keys = Keys::all;
  return made;
}

// The matrices in the order in which products read them.
template <class T>
struct Packed {
  std::unique_ptr<T, Free> weight, projection, input;
};

template <class T>
class Walk {
 public:
  Walk(const Recurrence<T>& p, const AttentionKernel<T>& kernel, const Packed<T>& packed, int64_t targets)
      : p_(p),
        kernel_(kernel),
        packed_(packed),
        wait_(packed.input == nullptr ? 1 : std::clamp<int64_t>(kRows / targets, 1, p.steps)),
        stride_(p.blocks * p.size + kPadding),
        a_(room<T>(targets * p.hidden)),
        arrived_(room<T>(targets * p.hidden)),
        projected_(room<T>(packed.projection == nullptr ? 0 : targets * p.size)),
        memory_(room<T>(targets * p.size)),
        rows_(room<T>(targets * wait_ * stride_)),
        reset_(room<T>(p.reset == nullptr ? 0 : targets * stride_)),
        to_all_(room<T>(targets)),
        of_output_(room<T>(targets)) {}

  // The targets [first, first + count) of a sample.
  void run(int64_t sample, int64_t first, int64_t count) {
    const int64_t H = p_.size, P = p_.hidden, width = p_.blocks * H, before = sample * p_.targets + first;
    std::fill(a_.get(), a_.get() + count * P, T(0));
    std::fill(to_all_.get(), to_all_.get() + count, T(0));
    if (p_.final == nullptr) {
      std::fill(memory_.get(), memory_.get() + count * H, T(0));
    } else {
      std::copy(p_.final + before * H, p_.final + (before + count) * H, memory_.get());
    }
    Step<T> s{};
    s.p = &p_, s.targets = count, s.a = a_.get(), s.memory = memory_.get(), s.to_hidden = reset_.get();
    s.rows_stride = wait_ * stride_, s.to_all = to_all_.get(), s.of_output = of_output_.get();
    Product<T> back = product_of(width, P, packed_.weight.get());
    Product<T> out = product_of(P, H, packed_.projection.get());
    back.rows = out.rows = count;
    back.c = a_.get(), back.a_stride = p_.reset == nullptr ? s.rows_stride : stride_;
    out.a = arrived_.get(), out.a_stride = P, out.c = projected_.get();
    for (int64_t t = p_.steps - 1; t >= 0; --t) {
      s.at = sample * p_.steps + t;
      s.relevance = p_.relevance + (before * p_.steps + t) * P;
      s.flows = packed_.input != nullptr ? nullptr : p_.flows + (before * p_.steps + t) * width;
      s.sums = p_.spread == nullptr ? nullptr : p_.spread_sums + before * p_.steps + t;
      s.arrived = arrived_.get();
      s.rows = rows_.get() + t % wait_ * stride_;
      run_best<Arrive<T>, const Step<T>*>(&s);
      if (packed_.projection != nullptr) {
        kernel_.product(out);
        s.arrived = projected_.get();
      }
      run_best<Send<T>, const Step<T>*>(&s);
      back.a = p_.reset == nullptr ? s.rows : reset_.get();
      kernel_.product(back);
      if (packed_.input != nullptr && t % wait_ == 0) {
        to_input(before, count, t);
      }
    }
    std::copy(a_.get(), a_.get() + count * P, p_.first + before * P);
    std::copy(memory_.get(), memory_.get() + count * H, p_.memory + before * H);
  }

 private:
  // The product with the input's weight, of the steps from t on that wait for it.
  void to_input(int64_t before, int64_t count, int64_t t) {
    const int64_t C = p_.channels, steps = std::min(wait_, p_.steps - t);
    Product<T> of = product_of(p_.blocks * p_.size, C, packed_.input.get());
    of.a = rows_.get(), of.c = p_.flows + (before * p_.steps + t) * C;
    if (wait_ == 1) {
      of.rows = count, of.a_stride = stride_, of.c_stride = p_.steps * C;
      kernel_.product(of);
      return;
    }
    of.rows = steps, of.a_stride = stride_;
    for (int64_t k = 0; k < count; ++k) {
      kernel_.product(of);
      of.a += wait_ * stride_, of.c += p_.steps * C;
    }
  }

  const Recurrence<T>& p_;
  const AttentionKernel<T>& kernel_;
  const Packed<T>& packed_;
  int64_t wait_, stride_;  // steps whose rows wait for their product, and a row's length
  std::unique_ptr<T, Free> a_, arrived_, projected_, memory_, rows_, reset_, to_all_, of_output_;
};

template <class T>
std::unique_ptr<T, Free> packed(const AttentionKernel<T>& kernel, int64_t rows, int64_t columns, const T* matrix) {
  if (matrix == nullptr) {
    return nullptr;
  }
  const int64_t whole = (columns + kernel.width - 1) / kernel.width * kernel.width;
  std::unique_ptr<T, Free> made = room<T>(rows * whole);
  kernel.pack(rows, columns, matrix, columns, T(1), made.get());
  return made;
}

}  // namespace

template <class T>
void recurrence_relevance(const Recurrence<T>& p) {
  const AttentionKernel<T> kernel = attention_kernel<T>();
  Packed<T> matrices;
  matrices.weight = packed(kernel, p.blocks * p.size, p.hidden, p.weight);
  matrices.projection = packed(kernel, p.hidden, p.size, p.projection);
  matrices.input = packed(kernel, p.blocks * p.size, p.channels, p.input_weight);
  // As many targets at once as leave work for every thread.
  const int64_t share = (p.batch * p.targets + thread_count() - 1) / thread_count();
  const int64_t together = std::clamp<int64_t>(std::min(share, p.targets), 1, kTargets);
  const int64_t tasks = (p.targets + together - 1) / together;
  parallel_for(p.batch * tasks, 1, [&](int64_t begin, int64_t end) {
    Walk<T> walk(p, kernel, matrices, together);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task % tasks * together;
      walk.run(task / tasks, first, std::min(together, p.targets - first));
    }
  });
}

template void recurrence_relevance<float>(const Recurrence<float>& p);
template void recurrence_relevance<double>(const Recurrence<double>& p);

}  // namespace fastlrp::cpu
