// csrc/cpu/elementwise against the formulas in double, around the sizes at which threads and vectors begin.
#include "../../csrc/cpu/elementwise.h"

#include "check.h"

namespace {

using fastlrp::cpu::Coefficients;
using fastlrp::cpu::Rule;

double quotient(double numerator, double denominator) { return denominator == 0 ? 0 : numerator / denominator; }
double stabilized(double z, double epsilon) { return z + (z < 0 ? -epsilon : epsilon); }

template <class T>
void check_rule(Rule rule, int64_t count, bool has_factor, double alpha, double epsilon, bool has_negative = true) {
  std::vector<T> z = native::mixed<T>(count), positive = native::mixed<T>(count), negative = native::mixed<T>(count);
  for (int64_t i = 0; i < count; ++i) {
    // Away from z + alpha P = 0, where rounding decides.
    positive[i] = std::abs(positive[i]);
    negative[i] = -std::abs(negative[i]);
    z[i] += z[i] > 0 ? T(0.5) : (z[i] < 0 ? T(-0.5) : T(0));
    positive[i] += positive[i] == 0 ? T(0) : T(0.5);
  }
  const std::vector<T> factor = native::mixed<T>(has_factor ? count : 0);
  const bool is_epsilon = rule == Rule::epsilon, is_zplus = rule == Rule::zplus;
  std::vector<T> u = native::poisoned<T>(is_zplus ? 0 : count), v = native::poisoned<T>(is_epsilon ? 0 : count);
  std::vector<double> expected_u(u.size()), expected_v(v.size());
  for (int64_t i = 0; i < count; ++i) {
    const double f = has_factor ? static_cast<double>(factor[i]) : 1.0, zi = z[i];
    if (is_epsilon) {
      expected_u[i] = quotient(f, stabilized(zi, epsilon));
    } else if (is_zplus) {
      expected_v[i] = alpha * quotient(f, stabilized(positive[i], epsilon));
    } else if (zi != 0) {
      const double part = zi > 0 ? positive[i] : (has_negative ? negative[i] : z[i] - positive[i]);
      const double q = quotient(f, stabilized(zi + alpha * part, epsilon));
      expected_u[i] = zi > 0 ? q : (1 + alpha) * q;
      expected_v[i] = zi > 0 ? alpha * q : -alpha * q;
    }
  }
  const auto or_null = [](std::vector<T>& values, bool given) { return given ? values.data() : nullptr; };
  const Coefficients<T> p{or_null(z, !is_zplus),
                          or_null(positive, !is_epsilon),
                          or_null(negative, rule == Rule::gamma && has_negative),
                          has_factor ? factor.data() : nullptr,
                          or_null(u, !is_zplus),
                          or_null(v, !is_epsilon),
                          count,
                          static_cast<T>(alpha),
                          static_cast<T>(epsilon)};
  fastlrp::cpu::elementwise_coefficients(rule, p);
  const std::string context = "rule " + std::to_string(static_cast<int>(rule)) + " count " + std::to_string(count);
  CHECK_FOR(native::close(u, expected_u), context);
  CHECK_FOR(native::close(v, expected_v), context);
}

}  // namespace

TEST(coefficients_equal_the_formulas) {
  for (const Rule rule : {Rule::epsilon, Rule::zplus, Rule::gamma}) {
    for (const int64_t count : {0, 1, 2, 3, 7, 15, 16, 17, 31, 33, 1009, 16383, 16384, 16385, 49157}) {
      for (const bool has_factor : {false, true}) {
        for (const double epsilon : {0.0, 0.25}) {
          check_rule<float>(rule, count, has_factor, 0.75, epsilon);
          check_rule<double>(rule, count, has_factor, 0.75, epsilon);
          if (rule == Rule::gamma) {
            check_rule<float>(rule, count, has_factor, 0.75, epsilon, false);
            check_rule<double>(rule, count, has_factor, 0.75, epsilon, false);
          }
        }
      }
    }
  }
}

TEST(scaled_relevance_is_the_product_rounded_to_bfloat16) {
  for (const int64_t count : {1, 15, 16, 17, 1009, 16385}) {
    const int64_t batch = 2, targets = 3;
    const std::vector<float> relevance = native::mixed<float>(batch * targets * count);
    const std::vector<float> coefficient = native::mixed<float>(batch * count);
    std::vector<fastlrp::Bf16> out(relevance.size(), fastlrp::Bf16(1e30f));
    fastlrp::cpu::elementwise_scaled<float>({relevance.data(), coefficient.data(), out.data(), batch, targets, count});
    bool close = true;
    for (int64_t i = 0; i < batch * targets * count; ++i) {
      const double expected = double{relevance[i]} * coefficient[i / count / targets * count + i % count];
      close = close && std::abs(double{float(out[i])} - expected) <= std::abs(expected) / 256;
    }
    CHECK_FOR(close, "count " + std::to_string(count));
  }
}

TEST(rectified_sums_and_their_shares) {
  for (const int64_t count : {0, 1, 15, 16, 17, 1009, 16385}) {
    std::vector<float> first = native::mixed<float>(count);
    const std::vector<float> second = native::mixed<float>(count);
    if (count > 15) {
      first[3] = std::numeric_limits<float>::quiet_NaN();
    }
    std::vector<float> y = native::poisoned<float>(count), alone = y, share = y;
    fastlrp::cpu::elementwise_rectified_sum({first.data(), second.data(), y.data(), share.data(), count, 0.25f});
    fastlrp::cpu::elementwise_rectified_sum({first.data(), second.data(), alone.data(), nullptr, count, 0.0f});
    bool right = true;
    for (int64_t i = 0; i < count; ++i) {
      if (count > 15 && i == 3) {
        right = right && y[i] != y[i] && alone[i] != alone[i] && share[i] != share[i];
        continue;
      }
      const float sum = std::max(0.0f, first[i] + second[i]);
      right = right && y[i] == sum && alone[i] == sum && share[i] == sum / (sum + 0.25f);
    }
    CHECK_FOR(right, "count " + std::to_string(count));
  }
}
