#pragma once

#include <cstdint>

namespace fastlrp {

enum class Rule { epsilon, zplus, gamma };

// The two numbers per output neuron that a rule needs, f = factor (or 1), st(z) = z + epsilon * sgn(z), sgn(0) = +1,
// a quotient with denominator 0 is 0, and where f is 0 both are 0:
//   epsilon  u = f / st(z)
//   zplus    v = alpha f / st(positive); alpha-beta is two of these, of W with alpha and of -W with -beta
//   gamma    z > 0: d = st(z + alpha positive): u = f / d, v = f alpha / d
//            z < 0: d = st(z + alpha negative): u = f (1 + alpha) / d, v = -f alpha / d;   z = 0: 0, 0
// All tensors are dense in one common order, `count` elements each; A is what sums are kept in.
template <class T, class A>
struct CoefficientsOf {
  const T* z;         // read by epsilon and gamma
  const T* positive;  // P + b+; read by all but epsilon
  const T* negative;  // N + b-; read by gamma; null, on the CPU: z - positive
  const T* factor;    // or null for 1
  T* u;               // written by all but zplus
  T* v;               // written by all but epsilon
  int64_t count;
  A alpha, epsilon;
};

}  // namespace fastlrp
