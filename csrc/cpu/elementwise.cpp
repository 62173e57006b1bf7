#include "elementwise.h"

#include <algorithm>

#include "../common/isa.h"
#include "../common/parallel.h"

namespace fastlrp::cpu {
namespace {

constexpr int64_t kGrain = 16384;  // elements; below it a second thread costs more than it saves

template <class T>
FASTLRP_INLINE T stabilized(T z, T epsilon) {
  return z + (z < T(0) ? -epsilon : epsilon);
}

// The division comes first and unconditionally: a select after it vectorises, a branch around it does not.
template <class T>
FASTLRP_INLINE T quotient(T numerator, T denominator) {
  const T q = numerator / denominator;
  return denominator == T(0) ? T(0) : q;
}

template <class T, Rule rule, bool has_factor, bool has_negative>
struct Sweep {
  FASTLRP_INLINE static void run(const Coefficients<T>* p, int64_t begin, int64_t end) {
    const T* __restrict z = p->z, * __restrict positive = p->positive, * __restrict negative = p->negative;
    const T* __restrict factor = p->factor;
    T* __restrict u = p->u, * __restrict v = p->v;
    const T alpha = p->alpha, epsilon = p->epsilon;
    for (int64_t i = begin; i < end; ++i) {
      const T f = has_factor ? factor[i] : T(1);
      if constexpr (rule == Rule::epsilon) {
        const T q = quotient(f, stabilized(z[i], epsilon));
        u[i] = f == T(0) ? T(0) : q;
      } else if constexpr (rule == Rule::zplus) {
        const T q = alpha * quotient(f, stabilized(positive[i], epsilon));
        v[i] = f == T(0) ? T(0) : q;
      } else {
        const T zi = z[i], pi = positive[i], ni = has_negative ? negative[i] : zi - pi;
        const bool up = zi > T(0);
        const T q = quotient(f, stabilized(zi + alpha * (up ? pi : ni), epsilon));
        const bool none = f == T(0) || zi == T(0);
        u[i] = none ? T(0) : (up ? q : (T(1) + alpha) * q);
        v[i] = none ? T(0) : (up ? alpha * q : -alpha * q);
      }
    }
  }
};

template <class T, Rule rule, bool has_negative = true>
void sweep_part(const Coefficients<T>& p, int64_t begin, int64_t end) {
  if (p.factor != nullptr) {
    run_best<Sweep<T, rule, true, has_negative>>(&p, begin, end);
  } else {
    run_best<Sweep<T, rule, false, has_negative>>(&p, begin, end);
  }
}

template <class T, Rule rule, bool has_negative = true>
void sweep(const Coefficients<T>& p) {
  parallel_for(p.count, kGrain, [&p](int64_t begin, int64_t end) { sweep_part<T, rule, has_negative>(p, begin, end); });
}

template <class From>
struct ScaledRow {
  FASTLRP_INLINE static void run(const From* __restrict relevance, const float* __restrict coefficient,
                                 Bf16* __restrict out, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      out[i] = Bf16(static_cast<float>(relevance[i]) * coefficient[i]);
    }
  }
};

template <bool has_share>
struct SumRow {
  FASTLRP_INLINE static void run(const RectifiedSum* p, int64_t begin, int64_t end) {
    const float* __restrict first = p->first, * __restrict second = p->second;
    float* __restrict y = p->y, * __restrict share = p->share;
    const float epsilon = p->epsilon;
    for (int64_t i = begin; i < end; ++i) {
      const float sum = first[i] + second[i];
      const float left = sum <= 0.0f ? 0.0f : sum;
      y[i] = left;
      if constexpr (has_share) {
        share[i] = quotient(left, left + epsilon);
      }
    }
  }
};

}  // namespace

template <class T>
void elementwise_coefficients(Rule rule, const Coefficients<T>& p) {
  switch (rule) {
    case Rule::epsilon:
      return sweep<T, Rule::epsilon>(p);
    case Rule::zplus:
      return sweep<T, Rule::zplus>(p);
    case Rule::gamma:
      return p.negative == nullptr ? sweep<T, Rule::gamma, false>(p) : sweep<T, Rule::gamma>(p);
  }
}

void coefficients_of_row(Rule rule, const Coefficients<float>& p) {
  switch (rule) {
    case Rule::epsilon:
      return sweep_part<float, Rule::epsilon>(p, 0, p.count);
    case Rule::zplus:
      return sweep_part<float, Rule::zplus>(p, 0, p.count);
    case Rule::gamma:
      return p.negative == nullptr ? sweep_part<float, Rule::gamma, false>(p, 0, p.count)
                                   : sweep_part<float, Rule::gamma>(p, 0, p.count);
  }
}

template <class From>
void elementwise_scaled(const Scaled<From>& p) {
  parallel_for(p.batch * p.targets * p.count, kGrain, [&p](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t row = begin / p.count, first = begin % p.count, count = std::min(end - begin, p.count - first);
      run_best<ScaledRow<From>>(p.relevance + begin, p.coefficient + row / p.targets * p.count + first, p.out + begin,
                                count);
      begin += count;
    }
  });
}

void elementwise_rectified_sum(const RectifiedSum& p) {
  parallel_for(p.count, kGrain, [&p](int64_t begin, int64_t end) {
    if (p.share == nullptr) {
      run_best<SumRow<false>>(&p, begin, end);
    } else {
      run_best<SumRow<true>>(&p, begin, end);
    }
  });
}

template void elementwise_scaled<float>(const Scaled<float>&);
template void elementwise_scaled<Bf16>(const Scaled<Bf16>&);
template void elementwise_coefficients<float>(Rule, const Coefficients<float>&);
template void elementwise_coefficients<double>(Rule, const Coefficients<double>&);

}  // namespace fastlrp::cpu
