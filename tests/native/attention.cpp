// csrc/cpu/attention against the formulas in double, with tiles cut everywhere, masks, groups of heads and dead rows.
#include "../../csrc/cpu/attention.h"

#include "check.h"

namespace {

using fastlrp::cpu::Attention;
using fastlrp::cpu::Mask;
using fastlrp::cpu::Strides;

struct Shape {
  int64_t batch, targets, heads, key_heads, rows, keys, size, value_size;
  bool causal;
  double cap, epsilon;
};

// (B, K, H, S) in this order in memory, or with heads behind rows, as a projection makes them.
Strides strides(bool heads_last, int64_t targets, int64_t heads, int64_t rows, int64_t size) {
  return heads_last ? Strides{targets * rows * heads * size, rows * heads * size, size, heads * size}
                    : Strides{targets * heads * rows * size, heads * rows * size, rows * size, size};
}

template <class T>
void check(const Shape& s, Mask kind, bool heads_last, bool all) {
  const int64_t B = s.batch, K = s.targets, H = s.heads, G = s.key_heads, S = s.rows, N = s.keys, D = s.size,
                E = s.value_size;
  std::vector<T> g = native::mixed<T>(B * K * H * S * E), q = native::mixed<T>(B * H * S * D);
  const std::vector<T> k = native::mixed<T>(B * G * N * D), v = native::mixed<T>(B * G * N * E);
  const std::vector<T> bias = native::mixed<T>(S * N);
  std::vector<char> flags(S * N);
  for (char& flag : flags) {
    flag = native::integer(0, 2) > 0;
  }
  const Strides of_g = strides(heads_last, K, H, S, E), of_q = strides(heads_last, 1, H, S, D),
                of_k = strides(heads_last, 1, G, N, D), of_v = strides(heads_last, 1, G, N, E),
                of_o = strides(heads_last, 1, H, S, E), to_q = strides(heads_last, K, H, S, D),
                to_k = strides(heads_last, K, G, N, D), to_v = strides(heads_last, K, G, N, E);
  for (int64_t b = 0; b < B; ++b) {  // The first target brings nothing into the first rows.
    for (int64_t h = 0; h < H; ++h) {
      for (int64_t i = 0; i < S / 2; ++i) {
        std::fill_n(g.begin() + of_g.at(b, 0, h, i), E, T(0));
      }
    }
  }
  const double scale = 0.0625, shares[] = {0.25, 0.5, 0.75};
  std::vector<T> o(B * H * S * E), log_sum(B * H * S);
  std::vector<double> expected_q(B * K * H * S * D), expected_k(B * K * G * N * D), expected_v(B * K * G * N * E);
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t h = 0; h < H; ++h) {
      const int64_t head = h / (H / G);
      for (int64_t i = 0; i < S; ++i) {
        std::vector<double> u(N), p(N), share(N, 1.0);
        double sum = 0;
        for (int64_t t = 0; t < N; ++t) {
          for (int64_t d = 0; d < D; ++d) {
            u[t] += scale * q[of_q.at(b, 0, h, i) + d] * k[of_k.at(b, 0, head, t) + d];
          }
          double score = u[t];
          if (s.cap > 0) {
            score = s.cap * std::tanh(u[t] / s.cap);
            share[t] = u[t] == 0 ? 1 : score / u[t];
          }
          share[t] *= s.epsilon > 0 ? u[t] / (u[t] + (u[t] < 0 ? -s.epsilon : s.epsilon)) : 1;
          const bool attends = (!s.causal || t <= i) && (kind != Mask::flags || flags[i * N + t]);
          p[t] = attends ? std::exp(score + (kind == Mask::bias ? bias[i * N + t] : T(0))) : 0;
          sum += p[t];
        }
        log_sum[(b * H + h) * S + i] = static_cast<T>(std::log(sum));
        for (int64_t t = 0; t < N; ++t) {
          p[t] = sum == 0 ? 0 : p[t] / sum;
          for (int64_t e = 0; e < E; ++e) {
            o[of_o.at(b, 0, h, i) + e] += static_cast<T>(p[t] * v[of_v.at(b, 0, head, t) + e]);
          }
        }
        for (int64_t n = 0; n < K; ++n) {
          const T* flow = g.data() + of_g.at(b, n, h, i);
          for (int64_t t = 0; t < N; ++t) {
            double c = 0;
            for (int64_t e = 0; e < E; ++e) {
              c += flow[e] * (double(v[of_v.at(b, 0, head, t) + e]) - o[of_o.at(b, 0, h, i) + e]);
              expected_v[to_v.at(b, n, head, t) + e] += shares[2] * p[t] * flow[e];
            }
            c *= p[t] * share[t] * scale;
            for (int64_t d = 0; d < D; ++d) {
              expected_q[to_q.at(b, n, h, i) + d] += shares[0] * c * k[of_k.at(b, 0, head, t) + d];
              expected_k[to_k.at(b, n, head, t) + d] += shares[1] * c * q[of_q.at(b, 0, h, i) + d];
            }
          }
        }
      }
    }
  }
  std::vector<T> c_q = native::poisoned<T>(all ? expected_q.size() : 0),
                 c_k = native::poisoned<T>(all ? expected_k.size() : 0);
  std::vector<T> c_v = native::poisoned<T>(expected_v.size());
  Attention<T> p{};
  p.batch = B, p.targets = K, p.heads = H, p.key_heads = G, p.rows = S, p.keys = N, p.size = D, p.value_size = E;
  p.relevance = {g.data(), of_g}, p.query = {q.data(), of_q}, p.key = {k.data(), of_k};
  p.log_sum = log_sum.data();
  p.kind = kind;
  p.mask = kind == Mask::flags ? static_cast<const void*>(flags.data()) : bias.data();
  p.mask_strides = {0, 0, 0, N};
  p.mask_key = 1;
  p.causal = s.causal;
  p.scale = static_cast<T>(scale), p.cap = static_cast<T>(s.cap), p.epsilon = static_cast<T>(s.epsilon);
  p.share_query = shares[0], p.share_key = shares[1], p.share_value = shares[2];
  p.c_value = {c_v.data(), to_v};
  if (all) {
    p.value = {v.data(), of_v}, p.output = {o.data(), of_o};
    p.c_query = {c_q.data(), to_q}, p.c_key = {c_k.data(), to_k};
  }
  fastlrp::cpu::attention_relevance<T>(p);
  const std::string context = std::to_string(S) + " x " + std::to_string(N) + ", size " + std::to_string(D) + ", " +
                              std::to_string(E) + ", mask " + std::to_string(static_cast<int>(kind));
  CHECK_FOR(native::close(c_v, expected_v), context);
  if (all) {
    CHECK_FOR(native::close(c_q, expected_q), context);
    CHECK_FOR(native::close(c_k, expected_k), context);
  }
}

}  // namespace

TEST(attention_equals_the_formulas) {
  const Shape shapes[] = {
      {1, 2, 1, 1, 1, 1, 1, 1, false, 0, 0},    {2, 3, 4, 2, 5, 5, 16, 16, true, 0, 0},
      {1, 2, 3, 1, 7, 33, 5, 9, false, 2, 0.5}, {1, 2, 2, 2, 261, 17, 33, 31, true, 0, 0.5},
      {1, 2, 1, 1, 9, 261, 32, 4, true, 0, 0},  {1, 1, 2, 1, 258, 270, 3, 5, true, 2, 0},
  };
  for (const Shape& shape : shapes) {
    for (const Mask kind : {Mask::none, Mask::flags, Mask::bias}) {
      for (const bool heads_last : {false, true}) {
        check<float>(shape, kind, heads_last, true);
        check<double>(shape, kind, heads_last, true);
        check<float>(shape, kind, heads_last, false);
      }
    }
  }
}
