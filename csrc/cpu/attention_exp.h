// Exponentials that a compiler can do many of at a time.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "../common/isa.h"

namespace fastlrp::cpu {

// x = n ln 2 + r, |r| <= ln 2 / 2; 2^n and r, from the Taylor series of exp(r) - 1 to a power that rounding hides.
template <class T>
struct Split {
  T power, rest;
};

FASTLRP_INLINE Split<float> split_exp(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: the sum with it is rounded to an integer
  const float sum = x * 1.44269504f + kRound, n = sum - kRound;
  const float r = (x - n * 0.693145752f) - n * 1.42860682e-6f;
  float series = 1.0f / 5040;
  series = series * r + 1.0f / 720;
  series = series * r + 1.0f / 120;
  series = series * r + 1.0f / 24;
  series = series * r + 1.0f / 6;
  series = series * r + 0.5f;
  uint32_t bits;
  std::memcpy(&bits, &sum, sizeof(bits));
  bits = (bits - 0x4b400000u + 127u) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof(power));
  return {power, series * r * r + r};
}

FASTLRP_INLINE Split<double> split_exp(double x) {
  constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  const double sum = x * 1.4426950408889634 + kRound, n = sum - kRound;
  const double r = (x - n * 0.69314718036912382) - n * 1.9082149292705877e-10;
  double series = 1.0 / 6227020800;
  series = series * r + 1.0 / 479001600;
  series = series * r + 1.0 / 39916800;
  series = series * r + 1.0 / 3628800;
  series = series * r + 1.0 / 362880;
  series = series * r + 1.0 / 40320;
  series = series * r + 1.0 / 5040;
  series = series * r + 1.0 / 720;
  series = series * r + 1.0 / 120;
  series = series * r + 1.0 / 24;
  series = series * r + 1.0 / 6;
  series = series * r + 0.5;
  uint64_t bits;
  std::memcpy(&bits, &sum, sizeof(bits));
  bits = (bits - 0x4338000000000000u + 1023u) << 52;
  double power;
  std::memcpy(&power, &bits, sizeof(power));
  return {power, series * r * r + r};
}

// What is below the normal numbers is 0; nothing is above exp(88) or exp(709).
template <class T>
FASTLRP_INLINE T exp_of(T x) {
  constexpr T least = sizeof(T) == 4 ? T(-87.3) : T(-708.3), most = sizeof(T) == 4 ? T(88) : T(709);
  const T inside = x < least ? least : (x > most ? most : x);
  const Split<T> s = split_exp(inside);
  const T found = s.power * s.rest + s.power;
  return x < least ? T(0) : found;
}

template <class T>
FASTLRP_INLINE T tanh_of(T x) {
  const T size = x < 0 ? -x : x, inside = size > T(20) ? T(20) : size;
  const Split<T> s = split_exp(2 * inside);
  const T less_one = s.power * s.rest + (s.power - T(1));  // exp(2 |x|) - 1 without cancellation
  const T found = less_one / (less_one + T(2));
  return x < 0 ? -found : found;
}

}  // namespace fastlrp::cpu
