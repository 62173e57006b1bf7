#pragma once

#include <cstdint>

namespace fastlrp::cpu {

enum class Rule { epsilon, zplus, alpha_beta, gamma };

// The two numbers per output neuron that a rule needs, f = factor (or 1), st(z) = z + epsilon * sgn(z), sgn(0) = +1,
// a quotient with denominator 0 is 0, and where f is 0 both are 0:
//   epsilon     u = f / st(z)
//   zplus       v = f / st(positive)
//   alpha_beta  A = 1 / st(positive), B = 1 / st(negative): u = -f beta B, v = f (alpha A + beta B)
//   gamma       z > 0: d = st(z + alpha positive): u = f / d, v = f alpha / d
//               z < 0: d = st(z + alpha negative): u = f (1 + alpha) / d, v = -f alpha / d;   z = 0: 0, 0
// All tensors are dense in one common order, `count` elements each.
template <class T>
struct Coefficients {
  const T* z;         // read by epsilon and gamma
  const T* positive;  // P + b+; read by all but epsilon
  const T* negative;  // N + b-; read by alpha_beta and gamma
  const T* factor;    // or null for 1
  T* u;               // written by all but zplus
  T* v;               // written by all but epsilon
  int64_t count;
  T alpha, beta, epsilon;
};

template <class T>
void elementwise_coefficients(Rule rule, const Coefficients<T>& p);

}  // namespace fastlrp::cpu
